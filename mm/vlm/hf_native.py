"""LLaVA-NeXT, Qwen2-VL and Qwen2.5-VL: Hugging Face models as they are, behind the methods of `VisionLanguageModel`.

Their number of visual tokens depends on the picture, so their own processors place the placeholders; the same counting,
padding and left alignment apply. For the Qwen family positions are three-dimensional (M-RoPE) and come from
`mm_token_type_ids`: Qwen2.5-VL falls back to plain positions in silence without them, so they are demanded here.
Dims: B samples, L tokens, D language width, n visual tokens of one picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from mm.checkpoint import resolve, write_aside
from mm.vlm.batch import PaddingSide, left_padded
from mm.vlm.native_batch import NEEDS_TOKEN_TYPES, native_batch
from mm.vlm.prompt import Conversation

MODEL_TYPES = ("llava_next", "qwen2_vl", "qwen2_5_vl")


class NativeVisionLanguageModel(nn.Module):
    """A Hugging Face image-text-to-text model with the toolkit's surface.

    Args:
        model: One of `MODEL_TYPES`.
        processor: Its Hugging Face processor; None: only prepared tensors go in and out.

    Raises:
        ValueError: another model type.
    """

    def __init__(self, model: Any, processor: Any = None) -> None:
        super().__init__()
        self.model_type: str = model.config.model_type
        if self.model_type not in MODEL_TYPES:
            raise ValueError(f"{self.model_type!r} is not one of {', '.join(MODEL_TYPES)}")
        self.model = model
        self._processor = processor

    @property
    def config(self) -> Any:
        """The Hugging Face config."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def processor(self) -> Any:
        """The Hugging Face processor.

        Raises:
            ValueError: the folder held none.
        """
        if self._processor is None:
            raise ValueError("this model has no processor; its folder held none, so it only takes prepared tensors")
        return self._processor

    # --- running -------------------------------------------------------------------------------------------------

    def visual_tokens(self, pixel_values: Tensor, **sizes: Tensor) -> tuple[Tensor, ...]:
        """Projected tokens of each picture.

        Args:
            pixel_values: As `prepare` gives them.
            sizes: `image_grid_thw` (Qwen) or `image_sizes` (LLaVA-NeXT), as `prepare` gives them.

        Returns:
            One (n, D) tensor per picture. Deviation from `VisionLanguageModel.visual_tokens`: n differs by picture, so
            it is no (T, M, D) tensor.
        """
        output = self.model.get_image_features(pixel_values, **sizes)
        return tuple(output.pooler_output)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        visual_counts: Tensor | None = None,
        labels: Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        """Logits and loss of the Hugging Face model.

        Args:
            input_ids: (B, L), placeholders included.
            attention_mask: 1 = token, (B, L).
            visual_counts: Pictures per sample (B,); only compared with the pictures in `inputs`.
            labels: (B, L), -100 = ignored.
            inputs: The rest of what `prepare` gave.

        Raises:
            ValueError: pictures without `mm_token_type_ids` (Qwen), or counts that do not fit.
        """
        self._check(visual_counts, inputs)
        self._forget_positions(inputs)
        return self.model(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **self._only_used(inputs))

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        visual_counts: Tensor | None = None,
        *,
        max_new_tokens: int = 64,
        **inputs: Any,
    ) -> Tensor:
        """Continue a batch padded on either side, greedily by default; new ids only, (B, n)."""
        inputs.pop("labels", None)
        self._check(visual_counts, inputs)
        self._forget_positions(inputs)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        token_types = inputs.pop("mm_token_type_ids", None)
        others = [input_ids] if token_types is None else [input_ids, token_types]
        mask, input_ids, *types = left_padded(mask, *others)
        inputs = {**self._only_used(inputs), **({"mm_token_type_ids": types[0]} if types else {})}
        inputs.setdefault("do_sample", False)
        ids = self.model.generate(input_ids=input_ids, attention_mask=mask, max_new_tokens=max_new_tokens, **inputs)
        return ids[:, input_ids.shape[1] :]  # type: ignore[no-any-return]

    def _check(self, visual_counts: Tensor | None, inputs: dict[str, Any]) -> None:
        """Refuse what the Hugging Face model would take in silence."""
        pictures = inputs.get("image_grid_thw", inputs.get("image_sizes"))
        if pictures is not None and self.model_type in NEEDS_TOKEN_TYPES and inputs.get("mm_token_type_ids") is None:
            raise ValueError(
                f"{self.model_type}: mm_token_type_ids is missing; without it positions would be those of plain text. "
                "Use prepare(), or call the processor with return_mm_token_type_ids=True"
            )
        if visual_counts is not None and int(visual_counts.sum()) != (0 if pictures is None else len(pictures)):
            raise ValueError(
                f"visual_counts sums to {int(visual_counts.sum())}, the batch holds "
                f"{0 if pictures is None else len(pictures)} pictures"
            )

    def _only_used(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """LLaVA-NeXT has no use for token types; a batch of text alone has no pixels."""
        drop = () if self.model_type in NEEDS_TOKEN_TYPES else ("mm_token_type_ids",)
        return {key: value for key, value in inputs.items() if key not in drop and value is not None}

    def _forget_positions(self, inputs: dict[str, Any]) -> None:
        """Qwen models keep position offsets of the last call; a new sequence must not start with them."""
        if self.model_type in NEEDS_TOKEN_TYPES and inputs.get("past_key_values") is None:
            self.model.model.rope_deltas = None

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
        """Pictures and text -> a batch on the model's device; see `native_batch` and `VisionLanguageModel.prepare`."""
        batch = native_batch(self.processor, self.model_type, images, text, answers, raw=raw, padding_side=padding_side)
        return {key: value.to(self.device) for key, value in batch.items()}

    def ask(self, images: Any, prompt: Conversation, *, max_new_tokens: int = 64, **options: Any) -> str:
        """The answer to one question about one or several pictures (or none)."""
        training = self.training
        self.eval()
        try:
            ids = self.generate(**self.prepare(images, prompt), max_new_tokens=max_new_tokens, **options)
        finally:
            self.train(training)
        return self.decode(ids)[0]

    def decode(self, ids: Tensor) -> list[str]:
        """Generated ids (B, n) -> texts, without special tokens."""
        return [text.strip() for text in self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    # --- training and files --------------------------------------------------------------------------------------

    def freeze(self, *, language: bool = False, tower: bool = False) -> NativeVisionLanguageModel:
        """Stop training the language model (with its head) or the tower."""
        inner = self.model.model
        if language:
            inner.language_model.requires_grad_(False)
            self.model.lm_head.requires_grad_(False)
        if tower:
            (inner.vision_tower if self.model_type == "llava_next" else inner.visual).requires_grad_(False)
        return self

    def save_pretrained(self, path: str | Path) -> Path:
        """Write a Hugging Face folder, whole or not at all."""
        with write_aside(path) as folder:
            folder.mkdir()
            self.model.save_pretrained(folder)
            if self._processor is not None:
                self._processor.save_pretrained(folder)
        return Path(path)

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> NativeVisionLanguageModel:
        """Read a Hugging Face folder or hub id; see `load`."""
        return load(resolve(name_or_path), dtype=dtype, device=device)


def load(folder: Path, *, dtype: torch.dtype | None, device: str | torch.device) -> NativeVisionLanguageModel:
    """Read a Hugging Face folder, strictly.

    Raises:
        ValueError: tensors are missing, left over or of another shape (named).
    """
    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        folder,
        dtype=dtype or torch.float32,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # so that all of them can be listed below
    )
    model, info = loaded
    problems = [f"  {kind}: {', '.join(map(str, sorted(keys)[:12]))}" for kind, keys in info.items() if keys]
    if problems:
        raise ValueError(f"{folder}: the weights do not fit {type(model).__name__}\n" + "\n".join(problems))
    has_processor = any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json"))
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True) if has_processor else None
    return NativeVisionLanguageModel(model.to(device).eval(), processor)
