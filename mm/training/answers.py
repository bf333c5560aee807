"""Training a vision-language model to answer, and writing its answers down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mm.training.module import TrainingModule


class AnswerModule(TrainingModule):
    """Next-token loss on answers; the model takes the batch of `mm.vlm` and has a `processor`.

    Dims: B samples, N tokens.
    """

    model: Any
    visual_tokens_in_sequence: int = 0
    """Tokens that a picture occupies in the language model's sequence."""
    max_new_tokens: int = 8
    """Longest predicted answer, tokens."""

    @property
    def processor(self) -> Any:
        """Tokenizer and preprocessing of the model; data modules take it from here."""
        return self.model.processor

    def compute_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
        """Mean cross-entropy over answer tokens, with the share of them that is right."""
        output = self.model(**batch)
        target = batch["labels"][:, 1:]
        learned = target != -100
        # position i predicts token i + 1; the mask is True on answer tokens and their end mark
        right = (output.logits[:, :-1].argmax(-1) == target)[learned].float().mean()
        pictures = batch["visual_counts"].sum() / len(batch["visual_counts"])
        logs = {
            "token_accuracy": right,
            "weight": learned.sum(),
            "visual_tokens_per_sample": pictures * self.visual_tokens_in_sequence,
        }
        return output.loss, logs

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> list[dict[str, str]]:
        """Answers of one batch, greedy."""
        return [{"answer": answer} for answer in self.answer(batch)]

    def answer(self, batch: dict[str, Tensor]) -> list[str]:
        """Greedy answers to prompts without answers, one per sample."""
        return answers_of(self.model, batch, self.max_new_tokens)


@torch.no_grad()
def answers_of(model: Any, batch: dict[str, Tensor], max_new_tokens: int = 8) -> list[str]:
    """Greedy answers of a vision-language model, one per sample.

    Args:
        model: Has `generate` and `processor` as in `mm.vlm`.
        batch: Prompts without answers.
        max_new_tokens: Longest answer, tokens.
    """
    ids = model.generate(**batch, max_new_tokens=max_new_tokens)
    return model.processor.decode(ids)  # type: ignore[no-any-return]


def accuracy(model: Any, samples: Sequence[Any], *, batch_size: int = 64, max_new_tokens: int = 8) -> float:
    """Share of samples whose greedy answer is exactly the expected one.

    Args:
        model: A vision-language model with a processor.
        samples: `VisualSample`s with question and answer.
        batch_size: Samples answered at once; the result does not depend on it.
        max_new_tokens: Longest answer, tokens.

    Raises:
        ValueError: no samples.
    """
    from mm.data.collate import collate

    if not samples:
        raise ValueError("accuracy needs at least one sample")
    right = 0
    for start in range(0, len(samples), batch_size):
        group = samples[start : start + batch_size]
        batch = collate(group, model.processor, answers=False, padding_side="left")
        found = answers_of(model, {key: value.to(model.device) for key, value in batch.items()}, max_new_tokens)
        right += sum(answer == sample.answer for answer, sample in zip(found, group, strict=True))
    return right / len(samples)
