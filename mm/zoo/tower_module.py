"""Training of the tiny vision tower: say of every patch what it shows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mm.data.dense import TARGETS, UNKNOWN
from mm.training.module import OptimizerConfig, TrainingModule
from mm.zoo.bases import TowerBase, tiny_vit

WEIGHTS = {"row": 0.2, "col": 0.2}
"""Targets that only keep something alive weigh less."""


class TowerModule(TrainingModule):
    """Patch labels with one linear head per target; the heads are left behind.

    Args:
        seed: Of the random weights and the noise.
        noise: Standard deviation of the pixel noise, in units of the full range.
        shift: Largest random shift of the whole picture, pixels.
        optimizer: Optimiser and schedule.
    """

    model: TowerBase
    mean: Tensor
    std: Tensor

    def __init__(
        self, seed: int = 0, noise: float = 0.07, shift: int = 1, optimizer: OptimizerConfig | None = None
    ) -> None:
        super().__init__(tiny_vit(seed).train(), optimizer)
        self.noise, self.shift = noise, shift
        tower = self.model.tower
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.heads = nn.ModuleDict({name: nn.Linear(tower.width, len(words)) for name, words in TARGETS.items()})
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (tower.preprocessing.mean, tower.preprocessing.std))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def compute_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
        """Sum of the targets' cross-entropies."""
        pictures = augmented(batch["pictures"], self.noise, self.shift) if self.training else batch["pictures"]
        tokens = self.model.tower((pictures - self.mean) / self.std).tokens  # (B, 64, D)
        loss, logs = tokens.new_zeros(()), {}
        for name, head in self.heads.items():
            logits, labels = head(tokens).transpose(1, 2), batch[name]
            if bool((labels == UNKNOWN).all()):
                continue
            loss = loss + WEIGHTS.get(name, 1.0) * F.cross_entropy(logits, labels, ignore_index=UNKNOWN)
            logs[f"{name}_accuracy"] = (logits.argmax(1) == labels)[labels != UNKNOWN].float().mean()
        return loss, logs


def augmented(pictures: Tensor, noise: float, shift: int) -> Tensor:
    """Noise, contrast and a shift by a few pixels; Lightning's seeded generator draws them.

    Args:
        pictures: (B, 3, H, W) in 0..1.
        noise: Standard deviation, in units of the full range.
        shift: Largest shift in pixels, the same for the whole batch.
    """
    contrast = 0.8 + 0.4 * torch.rand(len(pictures), 1, 1, 1, device=pictures.device)
    noisy = pictures * contrast + noise * torch.randn_like(pictures)
    dy, dx = torch.randint(-shift, shift + 1, (2,)).tolist()
    return torch.roll(noisy, (dy, dx), dims=(2, 3))
