"""Hooks that let tokens leave between the blocks of a Hugging Face decoder, in the prompt's pass and while decoding.

Blocks in front of a cut see L tokens, blocks behind it fewer, so their key/value caches have different lengths. The
model builds one mask and one set of positions for all blocks; behind a cut both are replaced:
- prompt: hidden states, rotary tables and positions are gathered (or counted anew), the mask is built again;
- decoding: the new token moves back by what its prompt has lost, and the mask gets the block's own length.
Dims: B prompts, L tokens of the prompt, n tokens now, q tokens of this call, D width.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from mm.pruning.llm_stage import Block, LanguageStage, Prompt
from mm.pruning.llm_state import Behind, Pass, leave, question_column, take_tokens
from mm.pruning.prompt import IGNORED, image_numbers
from mm.pruning.ragged import gather_rows

if TYPE_CHECKING:
    from mm.pruning.hosts import Host


class LanguageHooks:
    """The hooks of one attached model."""

    def __init__(self, stage: LanguageStage, host: Host) -> None:
        self.stage, self.host = stage, host
        self.decoder: Any = host.language_model
        self.config = self.decoder.config
        self.blocks = host.blocks
        parts = [name for name in ("input_layernorm", "self_attn") if not hasattr(self.blocks[0], name)]
        parts += [] if hasattr(self.decoder, "rotary_emb") else ["rotary_emb"]
        if parts:
            raise ValueError(
                f"{type(self.decoder).__name__} cannot be pruned inside: it lacks {', '.join(parts)}; use a method "
                "that works in the encoder"
            )
        self.depth = len(self.blocks)
        self.cuts = list(stage.cuts(self.depth))
        self.keep_positions = stage.positions == "keep" or host.multimodal_positions
        self.memory: WeakKeyDictionary[Cache, Pass] = WeakKeyDictionary()
        self.now: Pass | None = None
        self.announced: tuple[Tensor, list[int]] | None = None
        """Ids (B, L) and visual tokens per picture of the next prompt, for models that hand in embeddings."""
        self.last: Pass | None = None
        """The last prompt, for reports."""

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Hooks on every block that scores or runs behind a cut."""
        first = min(min(cut.scored_by, cut.before) for cut in self.cuts)
        with ExitStack() as undo:
            for number in range(self.depth):
                if number == 0 or number >= first:
                    hook = self._hook(number)
                    handle = self.blocks[number].register_forward_pre_hook(hook, with_kwargs=True)
                    undo.callback(handle.remove)
            yield

    def visual_per_block(self) -> list[int]:
        """Visual tokens that each block saw in the last prompt, summed over the batch."""
        if self.last is None:
            return []
        prompts = [self.last.first, *(behind.prompt for behind in self.last.behind)]
        counts = [int(prompt.visual.sum()) for prompt in prompts]
        return [counts[sum(cut.before <= number for cut in self.cuts)] for number in range(self.depth)]

    def last_blocks(self) -> Tensor:
        """Last block that each visual token of the first picture of the first prompt reached, (N,) int64.

        Kept tokens have the number of blocks.
        """
        if self.last is None:
            raise ValueError("no prompt with pictures has run yet")
        first = self.last.first
        place = (first.picture[0] == 0).nonzero()[:, 0]
        reached = torch.full_like(first.picture[0], self.depth)
        gone = torch.zeros_like(reached, dtype=torch.bool)
        for cut, behind in zip(self.cuts, self.last.behind, strict=True):
            left = torch.zeros_like(gone).index_fill(0, behind.origin[0][behind.chosen[0]], True)
            reached[~left & ~gone] = cut.before - 1
            gone |= ~left
        return reached[place]

    # --- around one call -----------------------------------------------------------------------------------------

    def begin(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Look at a call of the model before it runs; returns its arguments, without labels if tokens will leave."""
        cache = inputs.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            self.now = self.memory.get(cache)
            if self.now is not None:
                self.now.is_prompt = False
                self.now.new_mask = self._new_mask(inputs)
            return inputs
        self.now = None
        prompt, inputs = self._locate(inputs)
        if prompt is None:
            return inputs
        self.now = Pass(prompt, labels=inputs.get("labels"))
        return inputs if self.now.labels is None else {**inputs, "labels": None}

    def _locate(self, inputs: dict[str, Any]) -> tuple[Prompt | None, dict[str, Any]]:
        """Find the pictures of a prompt; features are computed here if the call brings pixels."""
        encoded = (inputs.get("mm_encoder_outputs") or {}).get("image")
        if encoded is None and inputs.get("pixel_values") is not None:
            encoded = self.host.features(inputs)
            inputs = self.host.text_positions(inputs) if self.host.multimodal_positions else inputs
            dropped = {*self.host.feature_inputs, *self.host.unpruned_only}
            inputs = {name: value for name, value in inputs.items() if name not in dropped}
            inputs["mm_encoder_outputs"] = {"image": encoded}
        if self.announced is not None:
            (ids, counts), self.announced = self._for_beams(inputs), None
        elif encoded is not None and inputs.get("input_ids") is not None:
            ids, counts = inputs["input_ids"], [len(features) for features in encoded.pooler_output]
        else:
            return None, inputs
        numbers = image_numbers(ids, self.host.image_token, counts)
        mask = inputs.get("attention_mask")
        if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
            raise ValueError(
                "pruning inside the language model needs a 2-D attention_mask and a cache that can grow; do not ask "
                "for a static cache or compiled generation"
            )
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        start = torch.where(numbers >= 0, numbers, numbers.amax() + 1).amin(dim=1, keepdim=True)
        per_prompt = torch.where(numbers >= 0, numbers - start, -1)
        most = int(per_prompt.amax()) + 1
        return Prompt(per_prompt, real, question_column(real, inputs.get("labels")), most), inputs

    def _for_beams(self, inputs: dict[str, Any]) -> tuple[Tensor, list[int]]:
        """What was announced, repeated for the rows that beam search makes of each prompt."""
        assert self.announced is not None
        ids, counts = self.announced
        beams = len(inputs["inputs_embeds"]) // len(ids)
        if beams == 1:
            return ids, counts
        numbers = image_numbers(ids, self.host.image_token, counts)
        owned = [[counts[picture] for picture in row[row >= 0].unique().tolist()] for row in numbers]
        return ids.repeat_interleave(beams, dim=0), [count for row in owned for _ in range(beams) for count in row]

    def _new_mask(self, inputs: dict[str, Any]) -> Tensor | None:
        mask, ids = inputs.get("attention_mask"), inputs.get("input_ids")
        length = (ids if ids is not None else inputs["inputs_embeds"]).shape[1]
        return mask[:, -length:].bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None

    def end(self, model: Any, output: Any) -> Any:
        """After the model ran: the loss over the tokens that are left."""
        now, self.now = self.now, None
        if now is None or now.labels is None or not hasattr(output, "logits"):
            return output
        labels = now.labels
        if now.behind:
            last = now.behind[-1]
            labels = labels.gather(1, last.origin).masked_fill(~last.chosen, IGNORED)
        vocabulary = output.logits.shape[-1]
        output.loss = model.loss_function(logits=output.logits, labels=labels, vocab_size=vocabulary)
        return output

    # --- one block -----------------------------------------------------------------------------------------------

    def _hook(self, number: int) -> Any:
        def before_block(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self.now is None:
                return None
            return self._enter(number, self.now, args, kwargs)

        return before_block

    def _enter(self, number: int, now: Pass, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden, rest = args[0], args[1:]
        if now.is_prompt:
            if number == 0:
                self.last = now
                now.first = self.stage.begin(now.first, hidden)
                cache = kwargs.get("past_key_values")
                if cache is not None:
                    self.memory[cache] = now
            hidden = self._pass_cuts(number, now, hidden, kwargs)
        passed = sum(cut.before <= number for cut in self.cuts)
        if passed and len(now.behind) >= passed:
            kwargs = self._behind(number, now, passed, hidden, kwargs)
        return (hidden, *rest), kwargs

    def _pass_cuts(self, number: int, now: Pass, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Score and apply the cuts that belong to this block; returns its input."""
        for cut in self.cuts:
            if cut.before == number and cut.scored_by < number:
                hidden = take_tokens(hidden, now.behind[cut.number])
        for cut in self.cuts:
            if cut.scored_by != number:
                continue
            prompt = now.behind[-1].prompt if now.behind else now.first
            passed = sum(other.before <= number for other in self.cuts if other.number < cut.number)
            tables = self._behind(number, now, passed, hidden, kwargs) if passed else kwargs
            block = Block(self.blocks[number], hidden, tables["position_embeddings"])
            with torch.no_grad():
                now.behind.append(leave(now, prompt, self.stage.select(cut, block, prompt, now.first)))
            if cut.before == number:
                hidden = take_tokens(hidden, now.behind[-1])
        return hidden

    def _behind(self, number: int, now: Pass, passed: int, hidden: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Keyword arguments of a block behind `passed` cuts."""
        state = now.behind[passed - 1]
        kwargs = dict(kwargs)
        if now.is_prompt:
            positions = self._positions(kwargs, state.origin, state.lost_before)
            origin, mask = state.origin, state.real
        else:
            positions = self._positions(kwargs, None, state.dropped[:, None])
            origin, mask = None, self._grown(number == self.cuts[passed - 1].before, state, now, hidden)
        if self.keep_positions:
            if origin is not None:
                cos, sin = (t.expand(len(origin), -1, -1) for t in kwargs["position_embeddings"])
                kwargs["position_embeddings"] = gather_rows(cos, origin), gather_rows(sin, origin)
        else:
            kwargs["position_embeddings"] = self._rotary(number, hidden, positions)
        if kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = positions
        kind = self._kind(number)
        build = create_sliding_window_causal_mask if kind == "sliding_attention" else create_causal_mask
        kwargs["attention_mask"] = build(
            config=self.config,  # type: ignore[arg-type]
            inputs_embeds=hidden,
            attention_mask=mask,
            past_key_values=kwargs.get("past_key_values"),
            layer_idx=number,
        )
        return kwargs

    def _positions(self, kwargs: dict[str, Any], origin: Tensor | None, lost: Tensor) -> Tensor | None:
        """Text positions behind a cut, (B, n); None if the model passes none."""
        positions = kwargs.get("position_ids")
        if positions is None:
            return None
        positions = positions.expand(len(lost), -1)
        positions = positions if origin is None else positions.gather(1, origin)
        return positions if self.keep_positions else (positions - lost).clamp(min=0)

    def _grown(self, first: bool, state: Behind, now: Pass, hidden: Tensor) -> Tensor:
        """Mask over the cached and the new tokens while decoding; it grows at the first block behind the cut."""
        if first:
            new = now.new_mask if now.new_mask is not None else state.real.new_ones(len(state.real), hidden.shape[1])
            state.real = torch.cat([state.real, new], dim=1)
        return state.real

    def _rotary(self, number: int, hidden: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        if positions is None:
            raise ValueError(
                f"{type(self.decoder).__name__} passes no position_ids to its blocks; cannot re-index them"
            )
        rotary = self.decoder.rotary_emb
        if "layer_type" in inspect.signature(rotary.forward).parameters:
            return rotary(hidden, positions, self._kind(number))
        return rotary(hidden, positions)

    def _kind(self, number: int) -> str:
        kinds = getattr(self.config, "layer_types", None)
        if kinds is not None:
            return kinds[number]
        return "sliding_attention" if getattr(self.config, "sliding_window", None) is not None else "full_attention"
