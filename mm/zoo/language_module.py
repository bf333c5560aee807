"""Training of the tiny language model on text alone.

Ordinary next-token training, in which answers weigh more than the rest and stated facts, which nothing predicts, not
at all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mm.data.tokenizer import word_ids
from mm.data.words import BOARD_WORDS, SCENE_WORDS
from mm.training.module import OptimizerConfig, TrainingModule
from mm.zoo.bases import tiny_lm


class LanguageModule(TrainingModule):
    """Next-token training of `tiny_lm`.

    Args:
        seed: Of the random weights.
        width: Channels of the language model.
        depth: Its blocks.
        text_weight: Weight of all other words beside the answers.
        optimizer: Optimiser and schedule.
    """

    def __init__(
        self,
        seed: int = 0,
        width: int = 128,
        depth: int = 4,
        text_weight: float = 0.1,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        super().__init__(tiny_lm(seed, width=width, depth=depth).train(), optimizer)
        self.text_weight = text_weight
        facts = torch.tensor([word_ids()[word] for word in BOARD_WORDS + SCENE_WORDS])
        self.register_buffer("facts", facts, persistent=False)

    def compute_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
        """Answer loss plus `text_weight` times the loss of all words but stated facts."""
        logits = self.model(batch["input_ids"]).logits[:, :-1].float()
        target, answers = batch["labels"][:, 1:], batch["answers"][:, 1:]
        losses = F.cross_entropy(logits.transpose(1, 2), target, ignore_index=-100, reduction="none")  # (B, N - 1)
        words = (target != -100) & (answers | ~torch.isin(target, self.facts))  # type: ignore[arg-type]
        answer_loss, text_loss = losses[answers].mean(), losses[words].mean()
        right = (logits.argmax(-1) == target)[answers].float().mean()
        logs = {"answer_loss": answer_loss, "text_loss": text_loss, "answer_accuracy": right}
        return answer_loss + self.text_weight * text_loss, logs
