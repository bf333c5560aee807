"""The concatenation host: picture tokens between the words of an ordinary causal language model.

Tower, projector and language model are three separate parts; features replace the embeddings at placeholder positions,
which are as many as there are visual tokens before the model runs.
Source: LLaVA (arXiv:2304.08485, section 4.1) and LLaVA-1.5 (arXiv:2310.03744).
Dims: B samples, L tokens, T pictures of the whole batch, M visual tokens per picture, D language width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mm.backbone import LanguageBackbone
from mm.checkpoint import CONFIG_FILE, Pretrained, read_json, resolve
from mm.registry import Registry
from mm.vision import ImageProcessor, VisionTower, build_tower
from mm.vlm.batch import PaddingSide, check_counts, left_padded, positions_of
from mm.vlm.config import PromptConfig, VLMConfig
from mm.vlm.language import build_language, language_config, read_tokenizer
from mm.vlm.processor import VLMProcessor, with_image_token
from mm.vlm.projector import build_projector
from mm.vlm.prompt import Conversation

if TYPE_CHECKING:
    from mm.vlm.hf_native import NativeVisionLanguageModel

LAYOUTS = Registry("vision-language layout")
"""`model_type` of a Hugging Face config.json -> `load(folder, *, dtype, device)`."""
LAYOUTS.add("llava", "mm.vlm.hf_llava:load")
LAYOUTS.add("tinyllava", "mm.vlm.tinyllava:load")
for _name in ("llava_next", "qwen2_vl", "qwen2_5_vl"):
    LAYOUTS.add(_name, "mm.vlm.hf_native:load")


class VisionLanguageModel(Pretrained, nn.Module):
    """Tower, projector, language model.

    Args:
        config: All three, and the prompt format.
        tokenizer: Needed to prepare text; without it only tensors go in and out.
        tower: Used instead of a random one; its config must be `config.tower`.
        backbone: Used instead of a random one.
    """

    config_class = VLMConfig
    config: VLMConfig

    def __init__(
        self,
        config: VLMConfig,
        *,
        tokenizer: Any = None,
        tower: VisionTower | None = None,
        backbone: LanguageBackbone | None = None,
    ) -> None:
        super().__init__()
        self.tower = tower if tower is not None else build_tower(config.tower)
        self.backbone = backbone if backbone is not None else build_language(config.language)
        self.config = replace(config, tower=self.tower.config)
        self.projector = build_projector(
            config.projector, self.tower.width, self.backbone.width, bias=config.projector_bias
        )
        self._processor = None if tokenizer is None else self._make_processor(tokenizer)

    @classmethod
    def from_parts(
        cls,
        tower: VisionTower,
        backbone: LanguageBackbone,
        tokenizer: Any = None,
        *,
        prompt: PromptConfig | None = None,
        **options: Any,
    ) -> VisionLanguageModel:
        """Join a tower and a language model by a new, random projector.

        Args:
            tower: Any vision tower.
            backbone: Any language backbone with a head.
            tokenizer: Default: the backbone's own.
            prompt: Prompt format.
            options: Further fields of `VLMConfig` (projector, feature_select, grids, ...).

        Raises:
            ValueError: no tokenizer, and no `image_token_id` in `options` either.
        """
        prompt = prompt or PromptConfig()
        tokenizer = tokenizer if tokenizer is not None else backbone.tokenizer
        if tokenizer is not None:
            tokenizer = with_image_token(tokenizer, prompt.image_token)
            options.setdefault("image_token_id", tokenizer.convert_tokens_to_ids(prompt.image_token))
        elif "image_token_id" not in options:
            raise ValueError("from_parts needs a tokenizer, or image_token_id for a model that only takes tensors")
        config = VLMConfig(tower=tower.config, language=language_config(backbone), prompt=prompt, **options)
        return cls(config, tokenizer=tokenizer, tower=tower, backbone=backbone)

    def _make_processor(self, tokenizer: Any) -> VLMProcessor:
        processor = VLMProcessor(
            tokenizer,
            ImageProcessor(self.tower.preprocessing),
            tokens_per_picture=self.tokens_per_picture,
            prompt=self.config.prompt,
            grids=self.config.grids,
            max_length=getattr(self.backbone.config, "max_position_embeddings", None),
        )
        if processor.image_token_id != self.config.image_token_id:
            raise ValueError(
                f"the tokenizer has {self.config.prompt.image_token} as id {processor.image_token_id}, the config says "
                f"image_token_id={self.config.image_token_id}; one of them belongs to another model"
            )
        return processor

    @property
    def processor(self) -> VLMProcessor:
        """Tokenizer and preprocessing.

        Raises:
            ValueError: the model was made or loaded without a tokenizer.
        """
        if self._processor is None:
            raise ValueError("this model has no tokenizer; its folder held none, so it only takes prepared tensors")
        return self._processor

    @property
    def tokens_per_picture(self) -> int:
        """Visual tokens that one tower input occupies in the language model (M)."""
        extra = {"patches": 0, "all": int(self.tower.has_cls), "drop_first": int(self.tower.has_cls) - 1}
        return self.tower.num_tokens + extra[self.config.feature_select]

    @property
    def device(self) -> torch.device:
        """Where the projector is."""
        return next(self.projector.parameters()).device

    # --- running -------------------------------------------------------------------------------------------------

    def visual_tokens(self, pixel_values: Tensor) -> Tensor:
        """Pictures as the language model sees them.

        Args:
            pixel_values: (T, 3, H, W); T may be 0.

        Returns:
            (T, M, D), dtype of the projector.
        """
        features = self.tower(pixel_values)
        tokens = features.tokens
        if self.config.feature_select != "patches" and features.cls is not None:
            tokens = torch.cat([features.cls[:, None], tokens], dim=1)
        if self.config.feature_select == "drop_first":
            tokens = tokens[:, 1:]
        projected = self.projector(tokens.to(next(self.projector.parameters()).dtype))
        if self.config.feature_scale == "sqrt_width":
            # rounded in the model's dtype, as the language model these weights were trained with did it
            projected = projected * torch.tensor(self.backbone.width**0.5, dtype=projected.dtype)
        return projected

    def splice(self, input_ids: Tensor, visual: Tensor) -> Tensor:
        """Embeddings of ids, with visual tokens at the placeholders.

        Args:
            input_ids: (B, L).
            visual: Any shape (..., D) whose rows, in order, are as many as there are placeholders.

        Returns:
            (B, L, D), dtype of the embedding.
        """
        placeholder = input_ids == self.config.image_token_id
        embedded = self.backbone.embed(input_ids.masked_fill(placeholder, 0))  # the id may be outside the vocabulary
        return embedded.masked_scatter(placeholder[..., None], visual.to(embedded.dtype))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        visual_counts: Tensor | None = None,
        labels: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """Logits, and with `labels` the mean next-token loss over them.

        Args:
            input_ids: With one placeholder per visual token, (B, L).
            attention_mask: 1 = token, (B, L); None: no padding.
            pixel_values: All pictures of the batch, sample after sample, (T, 3, H, W).
            visual_counts: Pictures per sample, (B,); 0 for a text-only row.
            labels: -100 = ignored, (B, L); shifted inside.
            options: Passed to the Hugging Face model (`logits_to_keep`, `output_hidden_states`, ...).

        Returns:
            The Hugging Face output, `.logits` (B, L, V) and `.loss`.

        Raises:
            ValueError: placeholders and pictures do not agree; the first such sample is named.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        embedded = self._embedded(input_ids, pixel_values, visual_counts)
        return self.backbone(
            inputs_embeds=embedded, attention_mask=mask, position_ids=positions_of(mask), labels=labels, **options
        )

    def _embedded(self, input_ids: Tensor, pixel_values: Tensor | None, visual_counts: Tensor | None) -> Tensor:
        if pixel_values is None:
            pixel_values = torch.empty(0, 3, *self.tower.image_size, device=input_ids.device)
        if not torch.compiler.is_compiling():
            check_counts(
                input_ids,
                self.config.image_token_id,
                pictures=len(pixel_values),
                tokens_per_picture=self.tokens_per_picture,
                visual_counts=visual_counts,
            )
        return self.splice(input_ids, self.visual_tokens(pixel_values))

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        visual_counts: Tensor | None = None,
        *,
        max_new_tokens: int = 64,
        **options: Any,
    ) -> Tensor:
        """Continue a batch, padded on either side. One prepared with answers is continued after them.

        Args:
            input_ids, attention_mask, pixel_values, visual_counts: As for `forward`.
            max_new_tokens: Longest answer, tokens.
            options: Hugging Face generation options (do_sample, num_beams, ...); greedy by default.

        Returns:
            New ids only, (B, n); rows that ended earlier are filled with the padding id.
        """
        options.pop("labels", None)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mask, input_ids = left_padded(mask, input_ids)  # new tokens are appended on the right
        if self._processor is not None:
            options = {"pad_token_id": self._processor.pad_token_id, **options}
            options.setdefault("eos_token_id", self._processor.eos_token_id)
        embedded = self._embedded(input_ids, pixel_values, visual_counts)
        return self.backbone.generate(  # type: ignore[no-any-return]
            inputs_embeds=embedded, attention_mask=mask, max_new_tokens=max_new_tokens, **options
        )

    # --- with text -----------------------------------------------------------------------------------------------

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
            ids = self.generate(**self.prepare(images, prompt), max_new_tokens=max_new_tokens, **options)
        finally:
            self.train(training)
        return self.processor.decode(ids)[0]

    # --- training ------------------------------------------------------------------------------------------------

    def freeze(self, *, language: bool = False, tower: bool = False) -> VisionLanguageModel:
        """Stop training the language model or the tower; they also stay in evaluation mode."""
        if language:
            self.backbone.freeze()
        if tower:
            self.tower.freeze()
        return self

    # --- files ---------------------------------------------------------------------------------------------------

    def preprocessing(self) -> dict[str, Any]:
        return self.tower.preprocessing.to_dict()

    def checkpoint_state(self) -> dict[str, Tensor]:
        state = self.state_dict()
        if any(".lora_" in key for key in state):
            raise ValueError(
                "this model has LoRA adapters; call backbone.merge_lora() before saving, or save those alone"
            )
        return state

    def save_extras(self, folder: Path) -> None:
        if self._processor is not None:
            self._processor.save_pretrained(folder)

    @classmethod
    def from_saved(cls, config: VLMConfig, folder: Path) -> VisionLanguageModel:  # type: ignore[override]
        return cls(config, tokenizer=read_tokenizer(folder))

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, name_or_path: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> VisionLanguageModel | NativeVisionLanguageModel:
        """Read a model folder of this toolkit, or of Hugging Face or TinyLLaVA by the `model_type` of its config.json.

        LLaVA and TinyLLaVA become a `VisionLanguageModel`; LLaVA-NeXT, Qwen2-VL and Qwen2.5-VL stay Hugging Face models
        behind the same methods.

        Args:
            name_or_path: A shipped name, a local folder or a hub id.
            dtype: Dtype of the parameters; None: float32.
            device: Where the model goes.

        Raises:
            FileNotFoundError: nothing under that name.
            ValueError: another kind of model, or weights that do not fit (all listed).
        """
        folder = resolve(name_or_path)
        data = read_json(folder / CONFIG_FILE)
        if "model_class" in data:
            return cls.from_folder(folder, dtype=dtype, device=device)
        model_type = str(data.get("model_type"))
        if model_type not in LAYOUTS:
            raise ValueError(
                f"{folder / CONFIG_FILE}: model_type {model_type!r} is not a vision-language model this toolkit reads; "
                f"known: {', '.join(LAYOUTS)}"
            )
        return LAYOUTS.get(model_type)(folder, dtype=dtype, device=device)  # type: ignore[no-any-return]
