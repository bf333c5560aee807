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
from mm.vision import load_image
from mm.vlm.batch import PaddingSide, left_padded, pad_rows
from mm.vlm.config import PromptConfig
from mm.vlm.processor import IGNORED, group_images
from mm.vlm.prompt import Conversation, as_turns, render

PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids")
MODEL_TYPES = ("llava_next", "qwen2_vl", "qwen2_5_vl")
NEEDS_TOKEN_TYPES = ("qwen2_vl", "qwen2_5_vl")
QWEN_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"


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
        """Continue a batch padded on either side; new ids only, (B, n). Greedy unless Hugging Face options say otherwise."""
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
        """Pictures and text -> a batch; arguments as for `VisionLanguageModel.prepare`.

        Returns:
            What the Hugging Face processor gives, `visual_counts` (B,), and with answers `labels` (B, L).

        Raises:
            ValueError: an empty prompt, or placeholders that do not fit the pictures; the sample is named.
        """
        single = isinstance(text, str) or (len(text) > 0 and isinstance(text[0], dict))
        texts: Sequence[Any] = [text] if single else text
        replies = [answers] if isinstance(answers, str) else list(answers or [None] * len(texts))
        if len(replies) != len(texts):
            raise ValueError(f"{len(texts)} texts but {len(replies)} answers")
        groups = group_images([images] if single else images, len(texts))
        pictures = [
            [load_image(image, name=f"sample {i}, picture {j}") for j, image in enumerate(group)]
            for i, group in enumerate(groups)
        ]
        prompts = [self._prompt(i, texts[i], len(group), raw) for i, group in enumerate(pictures)]
        flat = [picture for group in pictures for picture in group]
        output = self.processor(
            images=flat or None,
            text=prompts,
            padding=True,
            return_tensors="pt",
            return_mm_token_type_ids=self.model_type in NEEDS_TOKEN_TYPES,
        )
        batch = self._with_answers(dict(output), replies, padding_side)
        batch["visual_counts"] = torch.tensor([len(group) for group in pictures])
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

    def _prompt(self, index: int, conversation: Conversation, pictures: int, raw: bool) -> str:
        """One finished prompt with one placeholder per picture."""
        token = str(self.processor.image_token)
        try:
            system, turns = as_turns(conversation, None, "<image>")
            if turns[-1][1] is not None:
                raise ValueError("the conversation ends with an answer; give the last answer as answers=")
            if not turns[-1][0].replace("<image>", "").strip():
                raise ValueError("the prompt is empty; ask something about the picture")
            if raw:
                return self._checked(turns[0][0], token, pictures)
            found = sum(question.count("<image>") for question, _ in turns)
            if not found and pictures:
                turns[0] = ("<image>" * pictures + turns[0][0], turns[0][1])
            elif found != pictures:
                raise ValueError(f"{found} <image> placeholders in the text, but {pictures} pictures were given")
            return self._checked(self._render(system, turns), token, pictures)
        except ValueError as error:
            raise ValueError(f"sample {index}: {error}") from error

    def _render(self, system: str, turns: list[Any]) -> str:
        """The processor's own chat template, or the family's plain prompt."""
        if getattr(self.processor, "chat_template", None) or getattr(self.processor.tokenizer, "chat_template", None):
            prompt = PromptConfig(format="chat")
            templater = self.processor if getattr(self.processor, "chat_template", None) else self.processor.tokenizer
            text = "".join(segment.text for segment in render(system, turns, prompt, templater))
            return text if self.processor.image_token in text else self._own_placeholders(text)
        template = "USER: {prompt} ASSISTANT:" if self.model_type == "llava_next" else "{prompt}"
        prompt = PromptConfig(template=template)
        return self._own_placeholders(
            "".join(segment.text for segment in render(system, turns, prompt, self.processor.tokenizer))
        )

    def _own_placeholders(self, text: str) -> str:
        picture = self.processor.image_token if self.model_type == "llava_next" else QWEN_PICTURE
        return text.replace("<image>", picture)

    @staticmethod
    def _checked(text: str, token: str, pictures: int) -> str:
        if text.count(token) != pictures:
            raise ValueError(
                f"{text.count(token)} {token} placeholders in the prompt, but {pictures} pictures were given"
            )
        return text

    def _with_answers(self, batch: dict[str, Any], replies: Sequence[str | None], side: PaddingSide) -> dict[str, Any]:
        """Append answers (and the end token) to the prompts, and pad again."""
        tokenizer = self.processor.tokenizer
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        answers = [
            [] if reply is None else [*tokenizer(reply, add_special_tokens=False).input_ids, *end] for reply in replies
        ]
        keep = batch["attention_mask"].bool()
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (end or [0])[0]
        fills = {"input_ids": pad, "attention_mask": 0, "mm_token_type_ids": 0}
        added = {"attention_mask": 1, "mm_token_type_ids": 0}
        prompts = [row[real].tolist() for row, real in zip(batch["input_ids"], keep, strict=True)]
        for name in PER_TOKEN:
            if name in batch:
                rows = [row[real].tolist() for row, real in zip(batch[name], keep, strict=True)]
                extra = [answer if name == "input_ids" else [added[name]] * len(answer) for answer in answers]
                batch[name] = pad_rows([a + b for a, b in zip(rows, extra, strict=True)], fills[name], side)
        if any(answers):
            labels = [[IGNORED] * len(p) + answer for p, answer in zip(prompts, answers, strict=True)]
            batch["labels"] = pad_rows(labels, IGNORED, side)
        return batch

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
    model, info = AutoModelForImageTextToText.from_pretrained(
        folder,
        dtype=dtype or torch.float32,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # so that all of them can be listed below
    )
    problems = [f"  {kind}: {', '.join(map(str, sorted(keys)[:12]))}" for kind, keys in info.items() if keys]
    if problems:
        raise ValueError(f"{folder}: the weights do not fit {type(model).__name__}\n" + "\n".join(problems))
    has_processor = any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json"))
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True) if has_processor else None
    return NativeVisionLanguageModel(model.to(device).eval(), processor)
