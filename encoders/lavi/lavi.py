"""`Lavi`: a Hugging Face causal LM whose chosen norms see pictures.

The sequence inside the language model stays text only; pictures act through `VisualContext` on the modulated norms.
Made by `mm.encoders.lavi.attach`, taken apart by `detach`.

Dims: B batch, N text tokens, M visual tokens, d_v vision width, C conditioner width, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mm.backbone import LanguageBackbone
from mm.encoders.lavi.conditioners import Conditioners
from mm.encoders.lavi.conditioners.base import Grid
from mm.encoders.lavi.config import LaviConfig
from mm.encoders.lavi.context import VisualContext
from mm.encoders.lavi.diagnostics import Recorder
from mm.encoders.lavi.generation import generate
from mm.encoders.lavi.prefix_cache import Prefix
from mm.encoders.lavi.projector import AlignedProjector, VisualProjector, pool_ids, pool_tiles
from mm.encoders.lavi.stage import Frame, Stage, remember_frames, token_order, token_view, whole_view


class Lavi(nn.Module):
    """A language model with a visual path through its norms.

    Attributes:
        language_model: The Hugging Face model (or a peft wrapper of it); its keys and classes are unchanged.
        visual_proj: Vision features -> visual tokens.
        cond: Conditioners of the modulated blocks, `cond.layers.{block}.{attn|ffn}`.
        layers: Indices of the modulated blocks.
        sites: Modulated norms of each of them.
    """

    def __init__(
        self,
        language_model: nn.Module,
        backbone: LanguageBackbone,
        config: LaviConfig,
        visual_proj: VisualProjector | AlignedProjector,
        cond: Conditioners,
        stage: Stage,
    ) -> None:
        super().__init__()
        self.config = config
        self.language_model = language_model
        self.visual_proj = visual_proj
        self.cond = cond
        self.stage = stage
        self.layers = tuple(int(layer) for layer in cond.layers)
        self.sites = tuple(
            name for name in ("attn", "ffn") if name in dict(cond.block(self.layers[0]).named_children())
        )
        self.attached = True
        # Beside the module tree: it holds the same language model, whose keys must not appear twice.
        self.__dict__["backbone"] = backbone
        self.__dict__["view_hook"] = backbone.decoder.register_forward_pre_hook(self._refresh_view, with_kwargs=True)

    backbone: LanguageBackbone
    view_hook: torch.utils.hooks.RemovableHandle

    # --- pictures ------------------------------------------------------------------------------------------------

    def encode_vision(
        self,
        features: Tensor | Sequence[Tensor],
        mask: Tensor | None = None,
        *,
        tile_ids: Tensor | None = None,
        frame_ids: Tensor | None = None,
        image_ids: Tensor | None = None,
        grid: Grid | None = None,
    ) -> VisualContext:
        """Everything text needs to know about the pictures, computed once and reusable over turns and questions.

        Args:
            features: Patch tokens of all tiles and frames of each row behind each other, (B, M, d_v) float. Several ViT
                layers (`vision_feature_layers`): a sequence of such tensors.
            mask: True where a token is real, (B, M) bool; rows without any are text only. None: all are real (faster).
            tile_ids: Tile of each token, (B, M) integer; selects a row of the tile embedding.
            frame_ids: Video frame of each token, likewise.
            image_ids: Image of each token, likewise; needed for `VisualContext.placed`.
            grid: (rows, columns) of patches in every tile; needed for pooling and for the conv conditioner.

        Raises:
            ValueError: wrong widths, shapes or ids outside the embeddings, each named with what was found.
        """
        levels = self._checked_levels(features)
        ids = {"tile_ids": tile_ids, "frame_ids": frame_ids, "image_ids": image_ids}
        _check_shapes(levels[0], mask, ids, grid)
        if mask is not None:  # whatever stands on padding (NaN included) must not travel on
            levels = [level.masked_fill(~mask.unsqueeze(-1), 0.0) for level in levels]
        if self.config.pool:
            if grid is None:
                raise ValueError("pooling needs the patch plane: pass grid=(rows, columns) to encode_vision")
            size = self.config.pool
            pooled = [pool_tiles(level, mask, grid, size) for level in levels]
            levels, mask = [tokens for tokens, _ in pooled], pooled[0][1]
            ids = {name: pool_ids(value, grid, size) for name, value in ids.items()}
            grid = (size, size)
        if self.config.feature_mode == "aligned":
            tokens = self.visual_proj(levels, **ids)
        else:
            tokens = self.visual_proj(torch.cat(levels, dim=-1) if len(levels) > 1 else levels[0], **ids)
        return self.context_from_tokens(tokens, mask, grid=grid, **ids)

    def context_from_tokens(
        self,
        tokens: Tensor | Sequence[Tensor],
        mask: Tensor | None = None,
        *,
        tile_ids: Tensor | None = None,
        frame_ids: Tensor | None = None,
        image_ids: Tensor | None = None,
        grid: Grid | None = None,
    ) -> VisualContext:
        """A context from visual tokens that are already C wide: for other modalities with their own projector.

        Args:
            tokens: (B, M, C), or one such tensor per modulated block.
            mask: See `encode_vision`; so are the ids and the grid.
        """
        per_block = [tokens] * len(self.layers) if isinstance(tokens, Tensor) else list(tokens)
        blocks = [self.cond.block(layer) for layer in self.layers]
        first = blocks[0]
        memory = {
            layer: block.prepare(level, mask, grid)
            for layer, block, level in zip(self.layers, blocks, per_block, strict=True)
        }
        return VisualContext(
            memory=memory,
            signature=self.signature,
            slot_wise=self.cond.slot_wise,
            mask=first.slot_mask(mask, grid),
            present=None if mask is None else mask.any(dim=1),
            tile_ids=first.slot_ids(tile_ids, grid),
            frame_ids=first.slot_ids(frame_ids, grid),
            image_ids=first.slot_ids(image_ids, grid),
        )

    @property
    def signature(self) -> str:
        """Layout of the contexts this model makes and takes."""
        c = self.config
        layers = ",".join(map(str, self.layers))
        return f"{c.conditioner}(width={c.width}, kv={c.kv_width}, blocks={layers}, model={self.backbone.width})"

    def _checked_levels(self, features: Tensor | Sequence[Tensor]) -> list[Tensor]:
        listed, width = len(self.config.vision_feature_layers), self.config.vision_width
        levels = [features] if isinstance(features, Tensor) else list(features)
        if len(levels) != listed:
            raise ValueError(f"vision_feature_layers lists {listed} ViT layers, got features of {len(levels)}")
        for level in levels:
            if level.ndim != 3 or level.shape[-1] != width:
                raise ValueError(
                    f"features must be (B, M, {width}) as vision_width={width} says, got shape {tuple(level.shape)}"
                )
            if level.shape[:2] != levels[0].shape[:2]:
                raise ValueError("features of the listed ViT layers differ in batch or token count")
        if levels[0].shape[1] == 0:
            raise ValueError("features hold no visual token at all; leave out visual= for text-only input")
        return levels

    # --- text ----------------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        visual: VisualContext | None = None,
        guidance: float = 1.0,
        **kwargs: Any,
    ) -> Any:
        """The language model's own forward pass, with the pictures in force.

        Args:
            input_ids: Text only, (B, N) integer (or `inputs_embeds=` (B, N, D)); no image placeholders to expand.
            attention_mask: True or 1 = real, (B, N); as the language model takes it.
            visual: What `encode_vision` gave, one row per text row; None is the plain language model.
            guidance: Other than 1: logits0 + guidance * (logits1 - logits0), from a pass without and one with the
                pictures.
            kwargs: Everything else the language model takes (labels, past_key_values, ...).

        Returns:
            The language model's output object.

        Raises:
            ValueError: a context of another adapter or batch size; guidance together with a cache or labels.
        """
        rows = self._text_rows(input_ids, kwargs.get("inputs_embeds"))
        run = {"input_ids": input_ids, "attention_mask": attention_mask, **kwargs}
        if guidance != 1.0 and visual is not None:
            return self._guided(run, visual, rows, guidance)
        with self.seeing(self._dropped(visual), rows=rows):
            return self.language_model(**run)

    def generate(
        self,
        input_ids: Tensor,
        visual: VisualContext | None = None,
        *,
        guidance: float | None = None,
        prefix: Prefix | None = None,
        **kwargs: Any,
    ) -> Any:
        """Hugging Face generation with the pictures in force: sampling, beams, left padding, any of its arguments.

        Args:
            input_ids: Prompt, (B, N) integer, left padded if rows differ (then pass `attention_mask`).
            visual: One context row per prompt row; beams and `num_return_sequences` share it.
            guidance: See `forward`; None takes `config.guidance`.
            prefix: Cached text keys and values of a `PrefixCache`, refused if they were made with other pictures.
            kwargs: Arguments of the language model's `generate`.

        Raises:
            ValueError: a context of another adapter or batch size, or a prefix of other pictures.
        """
        return generate(self, input_ids, visual, guidance=guidance, prefix=prefix, **kwargs)

    @contextmanager
    def seeing(
        self, visual: VisualContext | None, *, rows: int | None = None, recorder: Recorder | None = None
    ) -> Iterator[None]:
        """Keep pictures in force for whatever runs the language model inside the block; nests, undone after errors.

        Args:
            visual: The context; None runs the plain language model.
            rows: Text rows, if known, to be compared with the context's.
            recorder: Receives what every modulated norm does (see `mm.encoders.lavi.diagnostics`).

        Raises:
            ValueError: a context of another adapter or batch size, or the adapter was detached.
        """
        if not self.attached:
            raise ValueError("this LaVi adapter was detached from its language model; attach a new one")
        if self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            remember_frames(self.backbone.layers, self.stage)
        if visual is None:
            frame = None
        else:
            self._check_context(visual, rows)
            frame = Frame(visual, whole_view(visual), recorder)
        with self.stage.showing(frame):
            yield

    @property
    def delta_scale(self) -> float:
        """Factor on all deltas, adjustable at any time; 0 is the plain language model."""
        return self.stage.delta_scale

    @delta_scale.setter
    def delta_scale(self, value: float) -> None:
        self.stage.delta_scale = float(value)

    def gradient_checkpointing_enable(self) -> None:
        """Recompute blocks in backward, in the only mode that keeps the gradients of the visual path."""
        model: Any = self.backbone.model
        # transformers renames the method; both take the keywords of torch's checkpoint function.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        self.train(self.training)

    def train(self, mode: bool = True) -> Lavi:
        """Training mode; a frozen language model stays in evaluation mode, so that it has no dropout.

        Unless it is checkpointed, which Hugging Face does in training mode only.
        """
        super().train(mode)
        frozen = not any(parameter.requires_grad for parameter in self.language_model.parameters())
        checkpointed = any(getattr(block, "gradient_checkpointing", False) for block in self.backbone.layers)
        if frozen and not checkpointed:
            self.language_model.eval()
        return self

    def _guided(self, run: dict[str, Any], visual: VisualContext, rows: int, guidance: float) -> Any:
        if run.get("past_key_values") is not None or run.get("labels") is not None:
            raise ValueError(
                f"forward with guidance={guidance} runs the language model twice and takes neither a cache nor labels; "
                "use generate(), or guidance=1"
            )
        with self.seeing(None):
            plain = self.language_model(**run).logits
        with self.seeing(visual, rows=rows):
            output = self.language_model(**run)
        output.logits = plain + guidance * (output.logits - plain)
        output.past_key_values = None  # belongs to one of the two passes only
        return output

    def _dropped(self, visual: VisualContext | None) -> VisualContext | None:
        """In training, some rows lose their pictures (`vision_dropout`)."""
        if visual is None or not self.training or self.config.vision_dropout == 0.0:
            return visual
        drop = torch.rand(visual.batch_size, device=visual.device) < self.config.vision_dropout
        return visual.without(drop)

    def _refresh_view(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the decoder runs: what its tokens may see, where that depends on their place in the text."""
        frame = self.stage.frame
        if frame is None or (self.config.modulate_first_token and frame.context.image_starts is None):
            return
        tokens = args[0] if args else kwargs.get("input_ids")
        tokens = kwargs["inputs_embeds"] if tokens is None else tokens
        order = token_order(
            tokens, kwargs.get("attention_mask"), kwargs.get("position_ids"), kwargs.get("past_key_values")
        )
        frame.view = token_view(frame.context, order, modulate_first=self.config.modulate_first_token)

    def _check_context(self, visual: VisualContext, rows: int | None) -> None:
        if visual.signature != self.signature:
            raise ValueError(
                f"the visual context was made by {visual.signature}, this model is {self.signature}; encode the "
                "pictures again"
            )
        if rows is not None and rows != visual.batch_size:
            raise ValueError(
                f"the visual context has {visual.batch_size} rows, the text batch {rows}; for several questions about "
                "one picture use visual.expand(number of questions)"
            )

    @staticmethod
    def _text_rows(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> int:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds")
        return len(input_ids) if input_ids is not None else len(inputs_embeds)  # type: ignore[arg-type]


def _check_shapes(features: Tensor, mask: Tensor | None, ids: dict[str, Tensor | None], grid: Grid | None) -> None:
    """Masks and ids belong to the same tokens as the features, and the grid divides them."""
    expected = tuple(features.shape[:2])
    for name, value in {"mask": mask, **ids}.items():
        if value is not None and tuple(value.shape) != expected:
            raise ValueError(f"{name} must be {expected} like the features, got {tuple(value.shape)}")
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"mask must be boolean (True = real token), got {mask.dtype}")
    if grid is not None and expected[1] % (grid[0] * grid[1]):
        raise ValueError(f"{expected[1]} visual tokens are not whole tiles of {grid[0]} x {grid[1]} patches")
