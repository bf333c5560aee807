"""Samples -> the batch dict of the vision-language models; everything else is the processor's work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from mm.data.sample import VisualSample


def conversation_of(sample: VisualSample) -> str | list[dict[str, str]]:
    """What the processor asks: the question, or all turns of a longer conversation as messages."""
    history = sample.meta.get("history", ())
    system = sample.meta.get("system", "")
    if not history and not system:
        return sample.question
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer in history:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return [*messages, {"role": "user", "content": sample.question}]


def answer_of(sample: VisualSample) -> str:
    """What is learned: the answer, or the text of a caption or plain document.

    Raises:
        ValueError: the sample has neither.
    """
    learned = sample.answer or ("" if sample.question else sample.text)
    if not learned:
        raise ValueError(f"nothing to learn in the sample {sample.meta or sample}: answer and text are empty")
    return learned


def collate(
    samples: Sequence[VisualSample],
    processor: Any,
    *,
    answers: bool = True,
    padding_side: Literal["left", "right"] = "right",
) -> dict[str, Tensor]:
    """Build one batch.

    Args:
        samples: Samples (B); text-only ones may stand among them.
        processor: `mm.vlm.VLMProcessor` of the model: `processor(images, conversations, answers, padding_side=...)`.
        answers: False gives prompts without answers, for generation.
        padding_side: Where rows are filled up.

    Returns:
        `input_ids`, `attention_mask` (B, L), `pixel_values` (T, 3, H, W), `visual_counts` (B,), and with answers
        `labels` (B, L), -100 where nothing is learned.

    Raises:
        ValueError: no samples, one without anything to learn, or what the processor refuses.
    """
    if not samples:
        raise ValueError("a batch needs at least one sample")
    learned = [answer_of(sample) for sample in samples] if answers else None
    images = [sample.images for sample in samples]
    return processor(images, [conversation_of(sample) for sample in samples], learned, padding_side=padding_side)
