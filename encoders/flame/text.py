"""A frozen decoder language model as text tower: one caption in, one embedding per facet out.

All facets run in one pass (`mm.encoders.flame.facets`), which ends at the chosen block: later blocks and the head never
run. Beside it stands the fork, which runs the prefix once and every facet on its keys and values; both give the same
numbers, and the fork needs no mask that an attention kernel might not know.
Dims: B captions, N tokens, K facets, D width.
Source: FLAME (Cao et al. 2024, arXiv:2411.11927).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from mm.backbone import LanguageBackbone
from mm.encoders.flame.caption import clean_captions
from mm.encoders.flame.facets import (
    PREFIX,
    Compat,
    FacetBatch,
    FacetRow,
    Positions,
    collate,
    facet_mask,
    facet_positions,
    facet_slots,
    tokenize,
)
from mm.encoders.flame.fingerprint import fingerprint
from mm.encoders.flame.templates import FacetTemplate, template_set

Layer = int | str | Sequence[int]
FULL, SLIDING = "full_attention", "sliding_attention"


class TextTower(Protocol):
    """What training, store and evaluation ask of a text tower."""

    @property
    def width(self) -> int: ...

    def encode(
        self,
        captions: Sequence[str],
        template: str = "long",
        reduce: Literal["mean"] | None = None,
        normalize: bool = False,
        batch_size: int = 32,
    ) -> Tensor: ...

    def facets(self, template: str) -> int: ...

    def fingerprint(self) -> str: ...


class FacetTextEncoder(nn.Module):
    """Text embeddings at the facet slots of a frozen language model.

    Args:
        language_model: A Hugging Face causal LM or headless decoder, or a `LanguageBackbone`. It is frozen and stays in
            evaluation mode.
        tokenizer: Its fast tokenizer; None takes that of the backbone.
        layer: Block whose output is read, counted from 1 (Hugging Face's `hidden_states[layer]`, before any final
            norm); negative counts from the end, -1 is the last block. Several, as a list or "38_39", are averaged.
        templates: "official" (the authors' wording), "world" (for the tiny language model), or a mapping from name to
            `FacetTemplate`.
        positions: "consecutive" as published, or "reset": every facet directly behind the prefix.
        compat: How padding is treated, see `facet_mask`; anything but "none" repeats a defect and depends on the batch.
        max_tokens: Most tokens of a caption; longer ones are cut with a warning.
        padding_side: Where short captions of a batch are filled up; changes nothing but speed.
        sharing: "mask" runs all facets in one pass, "fork" continues every facet from the prefix's keys and values.

    Raises:
        ValueError: no tokenizer, an unknown layer or option, or options that exclude each other.

    Example:
        >>> from mm.data.text import tiny_tokenizer
        >>> backbone = LanguageBackbone.tiny("llama", vocab_size=2048, max_positions=256)
        >>> encoder = FacetTextEncoder(backbone, tiny_tokenizer(), layer=3, templates="world")
        >>> encoder.encode(["a red ring.", "two blue stars."]).shape == (2, encoder.facets("long"), encoder.width)
        True
    """

    def __init__(
        self,
        language_model: nn.Module,
        tokenizer: Any = None,
        *,
        layer: Layer = -2,
        templates: str | Mapping[str, FacetTemplate] = "official",
        positions: Positions = "consecutive",
        compat: Compat = "none",
        max_tokens: int = 1024,
        padding_side: Literal["left", "right"] = "left",
        sharing: Literal["mask", "fork"] = "mask",
    ) -> None:
        super().__init__()
        known = isinstance(language_model, LanguageBackbone)
        self.backbone: LanguageBackbone = language_model if known else LanguageBackbone(language_model)  # type: ignore
        self.backbone.freeze().eval()
        self.tokenizer = tokenizer if tokenizer is not None else self.backbone.tokenizer
        if self.tokenizer is None:
            raise ValueError("a text encoder needs the tokenizer of its language model; pass tokenizer=...")
        self.layers = resolve_layers(layer, self.backbone.depth)
        self.templates = template_set(templates)
        self.positions, self.compat, self.max_tokens = positions, compat, max_tokens
        self.padding_side, self.sharing = padding_side, sharing
        self._check()

    def _check(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}")
        if self.max_tokens < 2:
            raise ValueError(f"max_tokens must be at least 2, got {self.max_tokens}")
        if self.compat != "none" and self.sharing == "fork":
            raise ValueError(f"compat={self.compat!r} is about the mask of one pass; use sharing='mask'")
        if self._window is not None and self.sharing == "fork":
            raise ValueError("this language model has sliding windows, whose caches forget; use sharing='mask'")
        attention = self.backbone.config._attn_implementation
        if self.compat == "official" and attention != "eager":
            raise ValueError(
                f"compat='official' empties the rows of padding, which only attention 'eager' turns into a uniform "
                f"mixture as published; this model runs {attention!r}: model.set_attn_implementation('eager')"
            )

    # --- what others ask -----------------------------------------------------------------------------------------

    @property
    def width(self) -> int:
        """Channels of an embedding (D)."""
        return self.backbone.width

    @property
    def depth(self) -> int:
        """Blocks that run."""
        return self.layers[-1]

    def facets(self, template: str) -> int:
        """Embeddings per caption (K) under a template.

        Raises:
            ValueError: unknown template.
        """
        return len(self._template(template).facets)

    def fingerprint(self) -> str:
        """Short hexadecimal name of everything that decides an embedding: weights, layer, wording, tokenizer."""
        return fingerprint(self)

    def train(self, mode: bool = True) -> FacetTextEncoder:
        """Stays in evaluation mode: the tower is frozen."""
        return super().train(False)

    # --- encoding ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(
        self,
        captions: Sequence[str],
        template: str = "long",
        reduce: Literal["mean"] | None = None,
        normalize: bool = False,
        batch_size: int = 32,
    ) -> Tensor:
        """Embed captions.

        Args:
            captions: Any strings; empty ones too.
            template: Name of a template: "long", "short" or "single" for the sets that ship.
            reduce: None gives every facet; "mean" the mean of the un-normalised facets, as the authors evaluate.
            normalize: Unit length at the end, computed in float32.
            batch_size: Captions per pass. Captions of similar length share a pass; the result keeps their order.

        Returns:
            (B, K, D), or (B, D) with `reduce`; dtype of the language model, on its device.

        Raises:
            ValueError: unknown template or reduction, or a caption that is not a string (named).
        """
        if reduce not in (None, "mean"):
            raise ValueError(f"reduce must be None or 'mean', got {reduce!r}")
        rows = self.rows(captions, template)
        order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
        words: Tensor = self.backbone.embedding.weight  # type: ignore[assignment]
        found = words.new_empty(len(rows), self.facets(template), self.width)
        for first in range(0, len(rows), batch_size):
            part = order[first : first + batch_size]
            batch = collate([rows[index] for index in part], self._pad_id, self.padding_side)
            found[part] = self.embed(batch, self.facets(template))
        return finish(found, reduce, normalize)

    def rows(self, captions: Sequence[str], template: str = "long") -> list[FacetRow]:
        """Captions cleaned, put into the template and tokenised; what `encode` runs on.

        Raises:
            ValueError: as `encode`.
        """
        texts = checked_captions(captions)
        chosen, bos = self._template(template), self.tokenizer.bos_token
        cleaned = clean_captions(texts, self.tokenizer, self.max_tokens)
        rows = tokenize([chosen.render(caption, bos) for caption in cleaned], self.tokenizer)
        self._check_length(rows)
        return rows

    @torch.no_grad()
    def embed(self, batch: FacetBatch, facets: int) -> Tensor:
        """Un-normalised embeddings of tokenised captions, (B, K, D)."""
        words: Tensor = self.backbone.embedding.weight  # type: ignore[assignment]
        device = words.device
        if self.sharing == "fork":
            return self._forked(batch, facets, device)
        positions = facet_positions(batch.facet_ids, self.positions).to(device)
        mask = self._masks(batch.facet_ids.to(device), positions)
        hidden = self._hidden(batch.input_ids.to(device), mask, positions)  # (B, N, D)
        slots = facet_slots(batch.facet_ids, facets).to(device)
        return hidden.gather(1, slots[..., None].expand(-1, -1, hidden.shape[-1]))

    def _masks(self, facet_ids: Tensor, positions: Tensor) -> Tensor | dict[str, Tensor]:
        """The mask, and a narrower one for blocks with a sliding window, measured in positions."""
        full = facet_mask(facet_ids, self.compat)
        width = self._window
        if width is None:
            return full
        near = positions[:, :, None] - positions[:, None, :] < width
        return {FULL: full, SLIDING: facet_mask(facet_ids, self.compat, near)}

    def _hidden(self, ids: Tensor, attention: Any, positions: Tensor, cache: Any = None) -> Tensor:
        """Output of the chosen block, or the mean of several, (B, N, D)."""
        with self._recorded() as outputs:
            last = self.backbone.hidden_states(
                ids, layer=self.depth, attention=attention, positions=positions, cache=cache
            )
        return last if len(self.layers) == 1 else torch.stack(outputs).mean(dim=0)

    @contextmanager
    def _recorded(self) -> Iterator[list[Tensor]]:
        """Outputs of the chosen blocks, when they are several; the model is untouched afterwards."""
        outputs: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            outputs.append(output[0] if isinstance(output, tuple) else output)

        several = self.layers if len(self.layers) > 1 else ()
        hooks = [self.backbone.layers[number - 1].register_forward_hook(keep) for number in several]
        try:
            yield outputs
        finally:
            for hook in hooks:
                hook.remove()

    def _forked(self, batch: FacetBatch, facets: int, device: torch.device) -> Tensor:
        """The prefix once, then every facet from its keys and values, at the positions it has in one pass."""
        positions = facet_positions(batch.facet_ids, self.positions)
        ids, where, real = _part(batch, positions, PREFIX, "left")
        cache = self.backbone.new_cache()
        self.backbone.hidden_states(ids.to(device), self.depth, real.to(device), where.to(device), cache)
        found = []
        for number in range(1, facets + 1):
            own_ids, own_where, own = _part(batch, positions, number, "right")
            seen = torch.cat([real, own], dim=1).to(device)
            hidden = self._hidden(own_ids.to(device), seen, own_where.to(device), cache)
            last = own.sum(dim=1).to(device) - 1
            found.append(hidden[torch.arange(len(hidden), device=device), last])
            cache.crop(-own_ids.shape[1])
        return torch.stack(found, dim=1)

    # --- small things --------------------------------------------------------------------------------------------

    @property
    def _window(self) -> int | None:
        """Keys that a sliding-window block sees, None if no block has a window."""
        return None if self.backbone.spec.windows == "none" else getattr(self.backbone.config, "sliding_window", None)

    def _template(self, name: str) -> FacetTemplate:
        if name not in self.templates:
            raise ValueError(f"unknown template {name!r}; there are: {', '.join(self.templates)}")
        return self.templates[name]

    @property
    def _pad_id(self) -> int:
        """Any id will do: nobody sees it. The published code pads with `<unk>`, which `compat` modes do see."""
        tokenizer = self.tokenizer
        for candidate in (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id):
            if candidate is not None:
                return int(candidate)
        return 0

    def _check_length(self, rows: Sequence[FacetRow]) -> None:
        """Learned positions end somewhere; rotary ones do not."""
        longest = max((len(row.input_ids) for row in rows), default=0)
        limit = self.backbone.config.max_position_embeddings
        if self.backbone.spec.position_table and longest > limit:
            raise ValueError(
                f"a caption with its facets takes {longest} tokens, this language model has {limit} positions; "
                f"set max_tokens to {self.max_tokens - (longest - limit)} or less"
            )


_CHOICES = {
    "positions": ("consecutive", "reset"),
    "compat": ("none", "official", "causal_pad"),
    "padding_side": ("left", "right"),
    "sharing": ("mask", "fork"),
}


def resolve_layers(layer: Layer, depth: int) -> list[int]:
    """Block numbers from 1, ascending.

    Raises:
        ValueError: no such block, or the same twice.

    Example:
        >>> resolve_layers("38_39", depth=40), resolve_layers(-2, depth=40)
        ([38, 39], [39])
    """
    try:
        given = [int(part) for part in layer.split("_")] if isinstance(layer, str) else layer
    except ValueError as error:
        raise ValueError(f"layer must be a number or numbers joined by '_', got {layer!r}") from error
    numbers = [given] if isinstance(given, int) else list(given)
    found = sorted(depth + 1 + number if number < 0 else number for number in numbers)
    if not found or found[0] < 1 or found[-1] > depth or len(set(found)) < len(found):
        raise ValueError(f"layer must name different blocks in 1..{depth} (negative from the end), got {layer!r}")
    return found


def checked_captions(captions: Sequence[str]) -> list[str]:
    """A list of strings.

    Raises:
        ValueError: a single string, or an entry that is none (named).
    """
    if isinstance(captions, str):
        raise ValueError("captions must be a list of strings, got one string; write [caption]")
    for index, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise ValueError(f"caption {index} is not a string but {type(caption).__name__}")
    return list(captions)


def finish(embeddings: Tensor, reduce: str | None, normalize: bool) -> Tensor:
    """Mean over facets first, then unit length; the other order gives another vector."""
    if reduce == "mean":
        embeddings = embeddings.float().mean(dim=1).to(embeddings.dtype)
    return nn.functional.normalize(embeddings.float(), dim=-1).to(embeddings.dtype) if normalize else embeddings


def _part(
    batch: FacetBatch, positions: Tensor, number: int, side: Literal["left", "right"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, positions and reality (B, M) of the tokens with one facet id, moved together and padded on one side."""
    chosen = batch.facet_ids == number
    length = int(chosen.sum(dim=1).max())
    order = (~chosen if side == "right" else chosen).to(torch.int8).argsort(dim=1, stable=True)
    kept = order[:, :length] if side == "right" else order[:, -length:]
    return batch.input_ids.gather(1, kept), positions.gather(1, kept), chosen.gather(1, kept)
