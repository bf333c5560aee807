"""One adapter over every Hugging Face decoder language model.

The parts that multimodal systems touch (blocks, norms, embedding, head) under one name each, and an owned block loop
that stops where it is told. The wrapped model stays an ordinary Hugging Face model and can be used as one.

Dims: B batch, N tokens, D width, k blocks.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache

from mm.backbone import adapt, masks
from mm.backbone.masks import FULL, SLIDING, Attention
from mm.backbone.spec import BackboneSpec, decoder_of, reach, resolve_spec, unwrapped


class LanguageBackbone(nn.Module):
    """A decoder language model with its parts under fixed names.

    Args:
        model: A Hugging Face causal LM or headless decoder of a known family (`mm.backbone.FAMILIES`).
        tokenizer: Kept beside the model for callers; not used here.
        spec: Explicit layout for a family that is not listed.

    Raises:
        ValueError: unknown family, or a part is missing (named).

    Example:
        >>> backbone = LanguageBackbone.tiny("llama", depth=3)
        >>> ids = torch.arange(6)[None] + 3
        >>> backbone.hidden_states(ids, layer=2).shape == (1, 6, backbone.width)
        True
    """

    def __init__(self, model: nn.Module, tokenizer: Any = None, *, spec: BackboneSpec | None = None) -> None:
        super().__init__()
        self.spec = resolve_spec(model, spec)
        self.model = model
        self.tokenizer = tokenizer
        self.frozen = False
        self._peft: Any = None
        self.train(model.training)

    # --- parts ---------------------------------------------------------------------------------------------------

    @property
    def config(self) -> Any:
        """The Hugging Face config of the decoder."""
        return self.decoder.config

    @property
    def decoder(self) -> Any:
        """The module that holds embedding, blocks and final norm."""
        return decoder_of(self.model, self.spec)

    @property
    def layers(self) -> nn.ModuleList:
        """The blocks, in order."""
        return self.decoder.get_submodule(self.spec.layers)  # type: ignore[no-any-return]

    def norms(self, i: int) -> tuple[nn.Module, nn.Module]:
        """The norms in front of attention and feed-forward of block `i`; the same one twice if the family shares it."""
        block = self.layers[i]
        return block.get_submodule(self.spec.attention_norm), block.get_submodule(self.spec.feed_forward_norm)

    @property
    def embedding(self) -> nn.Module:
        """The token embedding module."""
        return self.decoder.get_submodule(self.spec.embed)  # type: ignore[no-any-return]

    @property
    def final_norm(self) -> nn.Module:
        """The norm after the last block (identity in a model that was loaded truncated)."""
        return self.decoder.get_submodule(self.spec.final_norm)  # type: ignore[no-any-return]

    @property
    def head(self) -> nn.Module | None:
        """The linear layer to the vocabulary, or None for a headless model."""
        return unwrapped(self.model).get_output_embeddings()  # type: ignore[no-any-return]

    @property
    def width(self) -> int:
        """Channels of the residual stream (D)."""
        return int(self.config.hidden_size)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.layers)

    # --- running -------------------------------------------------------------------------------------------------

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings (B, N, D) of ids (B, N): scaled as the family does (`spec.embed_scale`), no positions."""
        return self.embedding(ids)  # type: ignore[no-any-return]

    def hidden_states(
        self,
        inputs: Tensor,
        layer: int | None = None,
        attention: Attention = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """The residual stream after `layer` blocks; later blocks are not run.

        Equals `hidden_states[layer]` of the Hugging Face model, except after the last block, where that one is already
        normalised: apply `final_norm`.

        Args:
            inputs: Ids (B, N), integer, or embeddings (B, N, D) as `embed` gives them.
            layer: Blocks to run, 0..depth; 0 is the block input, None runs all.
            attention: None is causal; (B, M) padding mask; (B|1, H|1, N, M) bool mask or `BlockMask` that replaces
                causality and sliding windows; or a mapping from block kind to those. True = attend. M counts cached and
                new tokens.
            positions: Position ids (B, N), gaps allowed; by default real tokens are counted from 0.
            cache: Keys and values of earlier tokens (`new_cache()`); the new ones are added to it.

        Returns:
            (B, N, D), dtype of the model.

        Raises:
            ValueError: `layer` out of range, a mask or positions of the wrong shape or type.
        """
        adapt.check_checkpointing(self.layers[0])
        depth = self.depth if layer is None else layer
        if not 0 <= depth <= self.depth:
            raise ValueError(f"layer must lie in 0..{self.depth} (0 is the embedding), got {layer}")
        embedded = inputs if inputs.is_floating_point() else self.embed(inputs)
        positions = masks.token_positions(embedded, attention, positions, cache)
        kinds = self._block_kinds()[:depth]
        lowered = masks.layer_masks(self.config, set(kinds), embedded, attention, cache)
        hidden = self._enter(embedded, positions)
        extra = {} if cache is None else {self.spec.cache_argument: cache, "use_cache": True}
        rotary = self._rotary(hidden, positions, set(kinds))
        for block, kind in zip(self.layers, kinds, strict=False):
            out = block(hidden, attention_mask=lowered[kind], position_ids=positions, **rotary[kind], **extra)
            hidden = out[0] if isinstance(out, tuple) else out
        return hidden

    def _block_kinds(self) -> list[str]:
        """Per block: does it attend to everything or inside a sliding window."""
        if self.spec.windows == "by_layer":
            return list(self.config.layer_types)
        sliding = self.spec.windows == "all" and self.config.sliding_window is not None
        return [SLIDING if sliding else FULL] * self.depth

    def _enter(self, embedded: Tensor, positions: Tensor) -> Tensor:
        """Embeddings -> input of block 0: projection, learned positions, dropout, as far as the family has them."""
        spec, decoder = self.spec, self.decoder
        project = reach(decoder, spec.input_projection) if spec.input_projection else None
        hidden = embedded if project is None else project(embedded)
        if spec.position_table:
            table = decoder.get_submodule(spec.position_table)
            # OPT stores its table behind two unused rows and says so in `offset`.
            hidden = hidden + F.embedding(positions + getattr(table, "offset", 0), table.weight)
        return decoder.get_submodule(spec.embed_dropout)(hidden) if spec.embed_dropout else hidden

    def _rotary(self, hidden: Tensor, positions: Tensor, kinds: set[str]) -> dict[str, dict[str, Any]]:
        """Per block kind: the rotary tables as a block takes them, or nothing."""
        if self.spec.rotary == "none":
            return {kind: {} for kind in kinds}
        table = self.decoder.rotary_emb
        if self.spec.rotary == "by_layer":
            return {kind: {"position_embeddings": table(hidden, positions, kind)} for kind in kinds}
        shared = {"position_embeddings": table(hidden, positions)}
        return dict.fromkeys(kinds, shared)

    def new_cache(self) -> Cache:
        """An empty key/value cache that fits this model (sliding layers keep their window only)."""
        return DynamicCache(config=self.config)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The Hugging Face forward of the wrapped model, unchanged.

        Beware: without mask and cache, gaps in `position_ids` are read there as borders of packed samples; pass a mask
        of ones. `hidden_states` has no such reading.
        """
        adapt.check_checkpointing(self.layers[0])
        return self.model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Hugging Face generation of the wrapped model, unchanged.

        Raises:
            ValueError: the model has no language-model head.
        """
        if self.head is None:
            raise ValueError("generate: this backbone has no language-model head (it was loaded truncated)")
        return self.model.generate(*args, **kwargs)  # type: ignore[operator]

    # --- training ------------------------------------------------------------------------------------------------

    def freeze(self) -> LanguageBackbone:
        """Stop training the language model itself; it stays in evaluation mode under `.train()`.

        Grafted parts and LoRA adapters keep their trainability and follow `.train()`.
        """
        trainable = [(parameter, parameter.requires_grad) for parameter in adapt.added_parameters(self.model)]
        self.model.requires_grad_(False)
        for parameter, flag in trainable:
            parameter.requires_grad_(flag)
        self.frozen = True
        return self.train(self.training)

    def train(self, mode: bool = True) -> LanguageBackbone:
        """Training mode for everything that is not frozen."""
        super().train(mode)
        if self.frozen:
            self.model.eval()
            for module in adapt.added_modules(self.model):
                module.train(mode)
            for block in self.layers:
                adapt.keep_recomputing(block, mode)
        return self

    def gradient_checkpointing(self, enabled: bool = True) -> LanguageBackbone:
        """Keep only block inputs for the backward pass and recompute the rest; works on a frozen model too."""
        adapt.set_checkpointing(unwrapped(self.model), enabled)
        return self.train(self.training)

    def lora(
        self, rank: int = 8, alpha: float | None = None, dropout: float = 0.0, targets: tuple[str, ...] | None = None
    ) -> LanguageBackbone:
        """Freeze the language model's own weights and train low-rank adapters beside its linear layers.

        Args:
            rank: Rank r of the update.
            alpha: The update is scaled by alpha / rank; None means 2 * rank.
            dropout: Dropout on the adapters' input.
            targets: Last names of the linear layers to adapt; None takes every matrix of a block (`spec.lora_targets`).

        Raises:
            ImportError: peft is not installed.
            ValueError: adapters are there already, or a target name fits no layer.
        """
        if self._peft is not None:
            raise ValueError("lora: this backbone has adapters already; call merge_lora() first")
        alpha = 2.0 * rank if alpha is None else alpha
        targets = self.spec.lora_targets if targets is None else targets
        wrapper = adapt.add_lora(self.model, self.spec, rank=rank, alpha=alpha, dropout=dropout, targets=targets)
        # The adapters live inside self.model; a registered wrapper would list every parameter twice.
        object.__setattr__(self, "_peft", wrapper)
        return self.train(self.training)

    @property
    def peft(self) -> Any:
        """The `peft.PeftModel` around the model (for `save_pretrained` of the adapters).

        Raises:
            ValueError: there are no adapters.
        """
        if self._peft is None:
            raise ValueError("this backbone has no LoRA adapters; call lora() first")
        return self._peft

    def without_lora(self) -> AbstractContextManager[None]:
        """Inside the block the adapters are off: the model is what it was before `lora()`."""
        return self.peft.disable_adapter()  # type: ignore[no-any-return]

    def merge_lora(self) -> LanguageBackbone:
        """Add the adapters to the weights and remove them; the result is the same up to rounding."""
        self.peft.merge_and_unload()
        object.__setattr__(self, "_peft", None)
        return self

    # --- making --------------------------------------------------------------------------------------------------

    @classmethod
    def tiny(cls, family: str, seed: int = 0, **sizes: Any) -> LanguageBackbone:
        """A small random model of a family; see `mm.backbone.tiny.tiny_model`."""
        from mm.backbone.tiny import tiny_model

        return cls(tiny_model(family, seed, **sizes)).eval()

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        layers: int | None = None,
        dtype: torch.dtype | None = None,
        attn_implementation: str | None = None,
    ) -> LanguageBackbone:
        """A backbone from a Hugging Face folder or hub id, with its tokenizer; strict.

        Args:
            path: A local folder (never touches the network) or a hub id "owner/name".
            layers: Read and build only the first `layers` blocks, without head; `hidden_states()` then equals
                `hidden_states(layer=layers)` of the whole model.
            dtype: Dtype of the parameters; None keeps the dtype of the file.
            attn_implementation: "sdpa", "eager", "flex_attention", ...; None takes the family's default.

        Raises:
            FileNotFoundError: nothing there.
            ValueError: unknown family, `layers` out of range, tensors missing or left over (all named).
        """
        from mm.backbone.loading import load_decoder

        model, tokenizer = load_decoder(path, layers, dtype, attn_implementation)
        return cls(model, tokenizer)
