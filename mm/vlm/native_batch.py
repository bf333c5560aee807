"""Batches for Hugging Face models whose own processor places the image tokens (LLaVA-NeXT, Qwen2-VL, Qwen2.5-VL).

The placeholder in questions is `<image>` as everywhere in this toolkit; here it becomes the family's own.
Dims: B samples, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mm.vision import load_image
from mm.vlm.batch import PaddingSide, pad_rows
from mm.vlm.config import PromptConfig
from mm.vlm.processor import IGNORED, as_samples, group_images
from mm.vlm.prompt import Conversation, as_turns, place_pictures, render

NEEDS_TOKEN_TYPES = ("qwen2_vl", "qwen2_5_vl")
"""Families whose three-dimensional positions are computed from `mm_token_type_ids`."""
IMAGE = "<image>"
PICTURES = {"llava_next": IMAGE, **dict.fromkeys(NEEDS_TOKEN_TYPES, "<|vision_start|><|image_pad|><|vision_end|>")}
"""What one picture is in a prompt of each family, before its processor repeats the image token."""
PLAIN = {"llava_next": "USER: {prompt} ASSISTANT:"}
"""Prompt where neither processor nor tokenizer has a chat template; default: the question as it is."""
PER_TOKEN = {"input_ids": None, "attention_mask": 1, "mm_token_type_ids": 0}
"""Row tensors and their value at an answer's tokens (None: the token itself)."""


def native_batch(
    processor: Any,
    model_type: str,
    images: Any,
    text: Conversation | Sequence[Conversation],
    answers: str | Sequence[str | None] | None = None,
    *,
    raw: bool = False,
    padding_side: PaddingSide = "left",
) -> dict[str, Tensor]:
    """Pictures and text -> the batch of a Hugging Face model; arguments as for `VLMProcessor`.

    Returns:
        What the Hugging Face processor gives, `visual_counts` (B,), and with answers `labels` (B, L).

    Raises:
        ValueError: an empty prompt, or placeholders that do not fit the pictures; the sample is named.
    """
    single, texts, replies = as_samples(text, answers)
    groups = group_images([images] if single else images, len(texts))
    pictures = [
        [load_image(image, name=f"sample {i}, picture {j}") for j, image in enumerate(group)]
        for i, group in enumerate(groups)
    ]
    prompts = []
    for index, (conversation, group) in enumerate(zip(texts, pictures, strict=True)):
        try:
            prompts.append(finished_prompt(processor, model_type, conversation, len(group), raw=raw))
        except ValueError as error:
            raise ValueError(f"sample {index}: {error}") from error
    output = processor(
        images=[picture for group in pictures for picture in group] or None,
        text=prompts,
        padding=True,
        return_tensors="pt",
        return_mm_token_type_ids=model_type in NEEDS_TOKEN_TYPES,
    )
    batch = append_answers(dict(output), processor.tokenizer, replies, padding_side)
    batch["visual_counts"] = torch.tensor([len(group) for group in pictures])
    return batch


def finished_prompt(processor: Any, model_type: str, conversation: Conversation, pictures: int, *, raw: bool) -> str:
    """Text with one image token per picture, templates applied.

    Raises:
        ValueError: empty prompt, or another number of placeholders than pictures.
    """
    if raw:
        text, token = str(conversation), str(processor.image_token)
        if text.count(token) != pictures:
            raise ValueError(
                f"{text.count(token)} {token} placeholders in the text, but {pictures} pictures were given"
            )
        return text
    system, turns = as_turns(conversation, None, IMAGE)
    if turns[-1][1] is not None:
        raise ValueError("the conversation ends with an answer; give the last answer as answers=")
    turns = place_pictures(turns, pictures, IMAGE)
    templater = processor if getattr(processor, "chat_template", None) else processor.tokenizer
    if getattr(templater, "chat_template", None):
        prompt = PromptConfig(format="chat")
    else:
        prompt = PromptConfig(template=PLAIN.get(model_type, "{prompt}"))
    text = "".join(segment.text for segment in render(system, turns, prompt, templater))
    return text.replace(IMAGE, PICTURES[model_type])


def append_answers(
    batch: dict[str, Any], tokenizer: Any, replies: Sequence[str | None], side: PaddingSide
) -> dict[str, Any]:
    """Put answers and the end token behind the prompts, pad again, and add labels where there are answers."""
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    end = [] if eos is None else [eos]
    answers = [[] if r is None else [*tokenizer(r, add_special_tokens=False).input_ids, *end] for r in replies]
    keep = batch["attention_mask"].bool()
    prompt_lengths: list[int] = keep.sum(dim=1).tolist()
    for name, value in PER_TOKEN.items():
        if name not in batch:
            continue
        rows = []
        for row, real, answer in zip(batch[name], keep, answers, strict=True):
            rows.append([*row[real].tolist(), *(answer if value is None else [value] * len(answer))])
        fill = 0 if value is not None else (pad if pad is not None else eos or 0)
        batch[name] = pad_rows(rows, fill, side)
    if any(answers):
        labels = [[IGNORED] * length + answer for length, answer in zip(prompt_lengths, answers, strict=True)]
        batch["labels"] = pad_rows(labels, IGNORED, side)
    return batch
