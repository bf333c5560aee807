"""Training of a writer on dialogues, with a frozen VELVET-Med model in front of it."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from mm.backbone import LanguageBackbone
from mm.checkpoint import load
from mm.medical.tasks.presets import velvet_tiny_writer
from mm.medical.tasks.writer import Writer, answer_loss, yes_no_loss
from mm.medical.velvet.loss import IGNORE
from mm.medical.velvet.model import VelvetModel
from mm.training.module import OptimizerConfig, TrainingModule


class WriterModule(TrainingModule):
    """Train a `Writer` on a frozen `VelvetModel`.

    Args:
        model_path: The VELVET-Med model: shipped name or folder. Empty: random weights of the tiny one (for tests).
        language_path: Published language model, a folder or hub id, with low-rank adapters; empty: a small new one over
            the vocabulary of the phantoms.
        writer: Fields of `WriterConfig`; published with a language model: lora_rank 8.
        yes_no_weight: Weight of the yes/no head's loss.
        seed: Of the random weights.
        optimizer: Published: AdamW, betas (0.9, 0.99), decay 1e-4, rate 2e-5, cosine.
    """

    model: Writer

    def __init__(
        self,
        model_path: str = "velvet_tiny",
        language_path: str = "",
        writer: dict[str, Any] | None = None,
        yes_no_weight: float = 1.0,
        seed: int = 0,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        base = load(model_path) if model_path else _random(seed)
        if not isinstance(base, VelvetModel):
            raise ValueError(f"{model_path} holds a {type(base).__name__}, not a VelvetModel")
        if language_path:
            options: dict[str, Any] = {"language_path": language_path, "lora_rank": 8} | (writer or {})
            found = Writer.around(base, LanguageBackbone.from_pretrained(language_path), **options)
        else:
            found = velvet_tiny_writer(seed, base=base, **(writer or {}))
        super().__init__(found.train(), optimizer)
        # a frozen model is no part of what is trained and saved
        object.__setattr__(self, "base", base.eval().requires_grad_(False))
        self.yes_no_weight = yes_no_weight

    def compute_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
        """Cross-entropy of the answers plus that of the yes/no head, on a batch as `dialogue_batch` makes it."""
        found = self.model(**self.inputs(batch), input_ids=batch["answer_ids"], attention_mask=batch["answer_mask"])
        labels, asked = batch["labels"], batch["yes_no"] != IGNORE
        loss = answer_loss(found.logits, labels)
        head = yes_no_loss(found.yes_no, batch["yes_no"])
        right = (found.logits.argmax(-1) == labels) | (labels == IGNORE)
        short = (labels != IGNORE).sum(1) <= 2
        logs: dict[str, Any] = {
            "answers": loss.detach(),
            "yes_no": head.detach(),
            "yes_no_right": (((found.yes_no > 0) == (batch["yes_no"] == 1)) & asked).sum() / asked.sum().clamp(min=1),
            "answers_right": (right.all(1) & short).sum() / short.sum().clamp(min=1),
            "weight": (labels != IGNORE).sum(),
        }
        return loss + self.yes_no_weight * head, logs

    @torch.no_grad()
    def inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the frozen model gives: every scan is encoded once, every question by the text layers alone."""
        return frozen_inputs(cast(Any, self).base.to(self.device), batch)

    def batch_size(self, batch: Any) -> int:
        return len(batch["volume"])


@torch.no_grad()
def frozen_inputs(base: VelvetModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Arguments of `Writer.forward` in front of the answer, from volumes and question tokens."""
    features = base.encode_volume(batch["volume"]).report
    tokens = {name: batch[name] for name in ("input_ids", "token_type_ids", "attention_mask", "unit_starts")}
    text = base.encode_text(**tokens)
    return {
        "features": features[batch["scan"]],
        "states": text.states,
        "visible": text.visible,
        "keep": batch["attention_mask"],
    }


def _random(seed: int) -> VelvetModel:
    from mm.medical.velvet.presets import velvet_tiny

    return velvet_tiny(seed)
