"""A whole vision-language model with LaVi inside: vision tower, language model, tokenizer.

Text and pictures never share a sequence: `input_ids` hold words only, pictures go through the tower into a
`VisualContext`. The batch is that of `mm.vlm`, so that data sets, training and evaluation serve both.

Dims: B samples, N text tokens, T pictures (images, tiles or frames) of the batch, P most pictures of a sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mm.backbone import LanguageBackbone
from mm.checkpoint import Pretrained, load_state
from mm.encoders.lavi.attach import attach
from mm.encoders.lavi.config import LaviConfig
from mm.encoders.lavi.context import VisualContext
from mm.encoders.lavi.packing import PicturePacking
from mm.encoders.lavi.processor import LaviProcessor
from mm.vision import ImageProcessor, TowerConfig, VisionTower, build_tower
from mm.vlm.batch import PaddingSide, left_padded, positions_of
from mm.vlm.config import PromptConfig
from mm.vlm.language import build_language, language_config, read_tokenizer
from mm.vlm.prompt import Conversation

_RENAMES = (("tower.", "vision_tower."), ("lavi.", ""))
"""Our attribute -> name in files, where the adapter's parts stand at the top."""


@dataclass(frozen=True, kw_only=True)
class LaviModelConfig:
    """Tower, language model and the visual path between them."""

    tower: TowerConfig
    """The vision tower and its preprocessing."""
    language: dict[str, Any]
    """Hugging Face config of the language model, `model_type` included."""
    lavi: LaviConfig
    """The visual path; its `vision_width` is the tower's width."""
    picture_ids: Literal["none", "image", "tile", "frame"] = "image"
    """What several pictures of a sample are: the j-th gets row j of that embedding unless the batch brings ids. none: a
    set without order."""
    interleaved: bool = False
    """True: a word sees the pictures placed before it. False, as published: all pictures of its sample."""
    grids: tuple[tuple[int, int], ...] = ()
    """Any-resolution input: allowed (rows, columns) of tiles beside the thumbnail; () = one picture each."""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    """Prompt format."""

    def __post_init__(self) -> None:
        if self.picture_ids not in ("none", "image", "tile", "frame"):
            raise ValueError(f"picture_ids must be none, image, tile or frame, got {self.picture_ids!r}")
        if self.lavi.vision_feature_layers != (self.tower.layer,):
            raise ValueError(
                f"the tower is read at layer {self.tower.layer}, but lavi.vision_feature_layers is "
                f"{self.lavi.vision_feature_layers}; set it to ({self.tower.layer},). For several layers give your own "
                "features to Lavi.encode_vision"
            )


class LaviModel(Pretrained, nn.Module):
    """Vision tower and language model joined by LaVi.

    Args:
        config: All parts, and the prompt format.
        tokenizer: Needed to prepare text; without it only tensors go in and out.
        tower: Used instead of a random one; its config must be `config.tower`.
        backbone: Used instead of a random language model.
        seed: Draws the weights of the visual path.

    Raises:
        ValueError: the tower's width is not `config.lavi.vision_width`.
    """

    config_class = LaviModelConfig
    config: LaviModelConfig

    def __init__(
        self,
        config: LaviModelConfig,
        *,
        tokenizer: Any = None,
        tower: VisionTower | None = None,
        backbone: LanguageBackbone | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.tower = tower if tower is not None else build_tower(config.tower)
        if self.tower.width != config.lavi.vision_width:
            raise ValueError(
                f"the tower gives {self.tower.width} channels, lavi.vision_width says {config.lavi.vision_width}; make "
                "them agree"
            )
        language = backbone if backbone is not None else build_language(config.language)
        self.lavi = attach(language.model, config.lavi, seed=seed)
        self.config = replace(config, tower=self.tower.config)
        self._processor = None if tokenizer is None else self._make_processor(tokenizer)

    @classmethod
    def from_parts(
        cls,
        tower: VisionTower,
        backbone: LanguageBackbone,
        tokenizer: Any = None,
        *,
        lavi: Mapping[str, Any] | None = None,
        prompt: PromptConfig | None = None,
        seed: int = 0,
        **options: Any,
    ) -> LaviModel:
        """Join a tower and a language model by a new visual path.

        Args:
            tower: Any vision tower.
            backbone: Any language backbone with a head; its model is changed in place.
            tokenizer: Default: the backbone's own.
            lavi: Fields of `LaviConfig`; width and layer of the features come from the tower.
            prompt: Prompt format.
            seed: Draws the weights of the visual path.
            options: Further fields of `LaviModelConfig`.
        """
        fields = {"vision_width": tower.width, "vision_feature_layers": (tower.config.layer,), **(lavi or {})}
        config = LaviModelConfig(
            tower=tower.config,
            language=language_config(backbone),
            lavi=LaviConfig(**fields),
            prompt=prompt or PromptConfig(),
            **options,
        )
        tokenizer = tokenizer if tokenizer is not None else backbone.tokenizer
        return cls(config, tokenizer=tokenizer, tower=tower, backbone=backbone, seed=seed)

    @property
    def backbone(self) -> LanguageBackbone:
        """The language model with its parts under fixed names."""
        return self.lavi.backbone

    @property
    def processor(self) -> LaviProcessor:
        """Tokenizer and preprocessing.

        Raises:
            ValueError: the model was made or loaded without a tokenizer.
        """
        if self._processor is None:
            raise ValueError("this model has no tokenizer; its folder held none, so it only takes prepared tensors")
        return self._processor

    @property
    def tokens_per_picture(self) -> int:
        """Visual tokens that text can look at per picture; none of them enters the language model."""
        return self.config.lavi.pool**2 or self.tower.num_tokens

    @property
    def device(self) -> torch.device:
        """Where the visual path is."""
        return next(self.lavi.visual_proj.parameters()).device

    def _make_processor(self, tokenizer: Any) -> LaviProcessor:
        return LaviProcessor(
            tokenizer,
            ImageProcessor(self.tower.preprocessing),
            interleaved=self.config.interleaved,
            prompt=self.config.prompt,
            grids=self.config.grids,
            max_length=getattr(self.backbone.config, "max_position_embeddings", None),
        )

    # --- running ------------------------------------------------------------------------------------------------------

    def encode(
        self,
        pixel_values: Tensor,
        visual_counts: Tensor | None = None,
        *,
        batch_size: int | None = None,
        tile_ids: Tensor | None = None,
        frame_ids: Tensor | None = None,
        image_starts: Tensor | None = None,
    ) -> VisualContext | None:
        """Pictures of a batch as a context, to be kept over questions and turns.

        Args:
            pixel_values: All pictures, sample after sample, (T, 3, H, W).
            visual_counts: Pictures per sample, (B,); None: as many for each of `batch_size` samples.
            batch_size: B, where `visual_counts` does not tell; default 1.
            tile_ids: Tile of each picture, (T,); None: see `picture_ids` of the config.
            frame_ids: Video frame of each picture, (T,).
            image_starts: Text tokens in front of each picture of a sample, (B, P).

        Returns:
            One context row per sample, or None without any picture.

        Raises:
            ValueError: counts that do not fit the pictures.
        """
        rows = len(visual_counts) if visual_counts is not None else batch_size or 1
        packing = PicturePacking.from_counts(len(pixel_values), rows, visual_counts, pixel_values.device)
        if not len(pixel_values):
            return None
        seen = self.tower(pixel_values)
        per_picture = seen.tokens.shape[1]
        ids = {"tile": tile_ids, "frame": frame_ids, "image": None}
        if self.config.picture_ids != "none" and ids[self.config.picture_ids] is None:
            ids[self.config.picture_ids] = packing.column
        if image_starts is not None:
            ids["image"] = packing.column
        named = {f"{name}_ids": packing.ids(value, per_picture) for name, value in ids.items() if value is not None}
        visual = self.lavi.encode_vision(
            packing.tokens(seen.tokens), packing.mask(per_picture), grid=seen.grid, **named
        )
        return visual if image_starts is None else visual.placed(image_starts)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        visual_counts: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        visual: VisualContext | None = None,
        tile_ids: Tensor | None = None,
        frame_ids: Tensor | None = None,
        image_starts: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """Logits, and with `labels` the mean next-token loss over them.

        Args:
            input_ids: Words only, (B, N).
            attention_mask: 1 = token, (B, N); None: no padding.
            pixel_values: All pictures of the batch, sample after sample, (T, 3, H, W).
            visual_counts: Pictures per sample, (B,); 0 for a text-only row. None: the same number for each.
            labels: -100 = ignored, (B, N); shifted inside.
            visual: What `encode` gave, instead of pictures.
            tile_ids, frame_ids, image_starts: As for `encode`.
            options: Passed to the Hugging Face model.

        Returns:
            The Hugging Face output, `.logits` (B, N, vocabulary) and `.loss`.

        Raises:
            ValueError: counts that do not fit, or pictures and a context together.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        places = {"tile_ids": tile_ids, "frame_ids": frame_ids, "image_starts": image_starts}
        visual = self._context(len(input_ids), pixel_values, visual_counts, visual, places)
        return self.lavi(
            input_ids, attention_mask=mask, visual=visual, position_ids=positions_of(mask), labels=labels, **options
        )

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        visual_counts: Tensor | None = None,
        *,
        visual: VisualContext | None = None,
        tile_ids: Tensor | None = None,
        frame_ids: Tensor | None = None,
        image_starts: Tensor | None = None,
        max_new_tokens: int = 64,
        **options: Any,
    ) -> Tensor:
        """Continue a batch, padded on either side. One prepared with answers is continued after them.

        Args:
            input_ids, attention_mask, pixel_values, visual_counts: As for `forward`.
            visual, tile_ids, frame_ids, image_starts: As for `forward`.
            max_new_tokens: Longest answer, tokens.
            options: Hugging Face generation options, and `guidance`; greedy by default.

        Returns:
            New ids only, (B, n); rows that ended earlier are filled with the padding id.
        """
        options.pop("labels", None)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mask, input_ids = left_padded(mask, input_ids)  # new tokens are appended on the right
        places = {"tile_ids": tile_ids, "frame_ids": frame_ids, "image_starts": image_starts}
        visual = self._context(len(input_ids), pixel_values, visual_counts, visual, places)
        if self._processor is not None:
            options = {"pad_token_id": self._processor.pad_token_id, **options}
            options.setdefault("eos_token_id", self._processor.eos_token_id)
        options = {"do_sample": False, "attention_mask": mask, "max_new_tokens": max_new_tokens, **options}
        return self.lavi.generate(input_ids, visual=visual, **options)[:, input_ids.shape[1] :]  # type: ignore[no-any-return]

    def _context(
        self,
        rows: int,
        pixel_values: Tensor | None,
        visual_counts: Tensor | None,
        visual: VisualContext | None,
        places: dict[str, Tensor | None],
    ) -> VisualContext | None:
        if visual is not None:
            if pixel_values is not None:
                raise ValueError("pass either pixel_values or visual, not both")
            return visual
        if pixel_values is None:
            return None
        if visual_counts is not None and len(visual_counts) != rows:
            raise ValueError(f"visual_counts has {len(visual_counts)} entries for a batch of {rows} samples")
        return self.encode(pixel_values, visual_counts, batch_size=rows, **places)

    # --- with text ----------------------------------------------------------------------------------------------------

    def prepare(
        self,
        images: Any,
        text: Conversation | Sequence[Conversation],
        answers: str | Sequence[str | None] | None = None,
        *,
        raw: bool = False,
        padding_side: PaddingSide = "left",
    ) -> dict[str, Tensor]:
        """Pictures and text -> a batch for `forward` and `generate`, on the model's device; see `VLMProcessor`."""
        batch = self.processor(images, text, answers, raw=raw, padding_side=padding_side)
        return {key: value.to(self.device) for key, value in batch.items()}

    def ask(self, images: Any, prompt: Conversation, *, max_new_tokens: int = 64, **options: Any) -> str:
        """The answer to one question about one or several pictures (or none).

        Example:
            >>> model.ask("scan.png", "What is in row 3?")  # doctest: +SKIP
            'a five'
        """
        training = self.training
        self.eval()
        try:
            batch: dict[str, Any] = self.prepare(images, prompt)
            ids = self.generate(**batch, max_new_tokens=max_new_tokens, **options)
        finally:
            self.train(training)
        return self.processor.decode(ids)[0]

    # --- training -----------------------------------------------------------------------------------------------------

    def freeze(self, *, language: bool = False, tower: bool = False) -> LaviModel:
        """Stop training the language model or the tower; they also stay in evaluation mode."""
        if language:
            self.lavi.language_model.requires_grad_(False)
            self.lavi.train(self.lavi.training)
        if tower:
            self.tower.freeze()
        return self

    # --- files --------------------------------------------------------------------------------------------------------

    def preprocessing(self) -> dict[str, Any]:
        return self.tower.preprocessing.to_dict()

    def checkpoint_state(self) -> dict[str, Tensor]:
        """All tensors, named as in adapter files: vision_tower.*, visual_proj.*, cond.*, language_model.*.

        Raises:
            ValueError: unmerged LoRA weights, which a freshly built language model could not take.
        """
        state = self.state_dict()
        if any(".lora_" in key for key in state):
            raise ValueError("this model has LoRA adapters; merge them before saving, or save those alone")
        return {_renamed(key, _RENAMES): value for key, value in state.items()}

    def load_checkpoint_state(self, tensors: Mapping[str, Tensor], *, source: str) -> None:
        names = {_renamed(key, _RENAMES): key for key in self.state_dict()}
        load_state(self, {names.get(key, key): value for key, value in tensors.items()}, source=source)

    def save_extras(self, folder: Path) -> None:
        if self._processor is not None:
            self._processor.save_pretrained(folder)

    @classmethod
    def from_saved(cls, config: LaviModelConfig, folder: Path) -> LaviModel:  # type: ignore[override]
        return cls(config, tokenizer=read_tokenizer(folder))


def _renamed(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    for ours, theirs in rules:
        if key.startswith(ours):
            return theirs + key.removeprefix(ours)
    return key
