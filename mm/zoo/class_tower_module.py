"""Training of the tiny tower with 256 patches: patches say what they show, the class token says what is where.

The second task is what makes the tower worth pruning. Only patches on things can tell the class token what stands in
the nine places, so its attention learns to find them; asking it behind several blocks makes this start early.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from mm.data.dense import NOTHING, TARGETS
from mm.data.scene_patches import PATCH_TARGETS, PLACE_TARGETS
from mm.data.words import PLACES
from mm.training.module import OptimizerConfig, TrainingModule
from mm.zoo.bases import TowerBase, tiny_vit_256
from mm.zoo.tower_module import augmented

NOTHING_WEIGHT = 0.2
"""Background is most of a picture; its labels weigh less, so that things count about as much."""


class ClassTowerModule(TrainingModule):
    """Linear heads on patches and class token; the heads are left behind.

    Args:
        seed: Of the random weights.
        noise: Standard deviation of the pixel noise, in units of the full range.
        shift: Largest random shift of the whole picture, pixels.
        asked: Blocks (from 0) behind which the class token is asked; the last one must be the tower's last.
        class_weight: Weight of the class token's loss beside that of the patches.
        options: Sizes of the tower that differ (timm's keywords).
        optimizer: Optimiser and schedule.
    """

    model: TowerBase
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        seed: int = 0,
        noise: float = 0.05,
        shift: int = 1,
        asked: tuple[int, ...] = (1, 3, 5),
        class_weight: float = 1.0,
        options: dict[str, Any] | None = None,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        super().__init__(tiny_vit_256(seed, **(options or {})).train(), optimizer)
        tower = self.model.tower
        if not asked or max(asked) != tower.num_blocks - 1 or min(asked) < 0:
            raise ValueError(f"asked must hold blocks of 0..{tower.num_blocks - 1} and end with the last, got {asked}")
        self.noise, self.shift, self.asked, self.class_weight = noise, shift, sorted(asked), class_weight
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.patch_heads = nn.ModuleDict(
                {name: nn.Linear(tower.width, len(TARGETS[name])) for name in PATCH_TARGETS}
            )
            self.place_heads = nn.ModuleDict(
                {name: nn.Linear(tower.width, len(PLACES) * len(TARGETS[name])) for name in PLACE_TARGETS}
            )
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (tower.preprocessing.mean, tower.preprocessing.std))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def compute_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
        """Cross-entropies of the patches, plus the mean over the asked blocks of those of the class token."""
        pictures = augmented(batch["pictures"], self.noise, self.shift) if self.training else batch["pictures"]
        found = self.model.tower.module.forward_intermediates(
            (pictures - self.mean) / self.std,
            indices=self.asked,
            return_prefix_tokens=True,
            norm=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        tokens = found[-1][0]  # (B, S * S, D)
        loss, logs = tokens.new_zeros(()), {}
        for name, head in self.patch_heads.items():
            part, right = self._loss(head(tokens), batch[f"patch_{name}"], name)
            loss = loss + part
            logs[f"patch_{name}"] = right
        for name, head in self.place_heads.items():
            for _, prefix in found:
                logits = rearrange(head(prefix[:, 0]), "b (p c) -> b p c", p=len(PLACES))
                part, right = self._loss(logits, batch[f"place_{name}"], name)
                loss = loss + self.class_weight * part / len(found)
            logs[f"place_{name}"] = right  # of the last block
        return loss, logs

    @staticmethod
    def _loss(logits: Tensor, labels: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Cross-entropy with light background, and the share of things that are named right: logits (B, N, C)."""
        nothing = TARGETS[name].index(NOTHING)
        weight = torch.ones(logits.shape[-1], device=logits.device, dtype=logits.dtype)
        weight[nothing] = NOTHING_WEIGHT
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), weight=weight)
        return loss, (logits.argmax(-1) == labels)[labels != nothing].float().mean()
