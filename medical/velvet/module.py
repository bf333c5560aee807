"""Pre-training of VELVET-Med as a Lightning module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mm.checkpoint import load
from mm.data.split import Split
from mm.medical.velvet.centre import centre_levels
from mm.medical.velvet.data import PhantomConfig, phantom_batch
from mm.medical.velvet.model import VelvetModel
from mm.medical.velvet.objectives import ObjectiveConfig, pretraining_losses
from mm.medical.velvet.presets import velvet_bt_sv, velvet_tiny
from mm.training.module import OptimizerConfig, TrainingModule

SIZES = {"tiny": velvet_tiny, "paper": velvet_bt_sv}


class VelvetModule(TrainingModule):
    """Train a `VelvetModel` on volumes and reports.

    Args:
        size: "tiny", or "paper" for Bt + Sv.
        model_path: Start from this model folder or shipped name instead of random weights.
        objective: Weights of the losses.
        config: Fields of `VelvetConfig` that differ from the size.
        seed: Of the random weights, the masked words and the negatives.
        centre: Phantoms over which the level heads of a fresh tiny model are centred, see
            `mm.medical.velvet.centre`; 0 leaves them as they are.
        optimizer: Optimiser and schedule. Published: AdamW, betas (0.9, 0.98), decay 0.02, rate 2e-5, cosine, no
            warm-up, no clipping.
    """

    model: VelvetModel

    def __init__(
        self,
        size: str = "tiny",
        model_path: str | None = None,
        objective: ObjectiveConfig | None = None,
        config: dict[str, Any] | None = None,
        seed: int = 0,
        centre: int = 32,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        if size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
        model = SIZES[size](seed=seed, **(config or {})) if model_path is None else load(model_path)
        if not isinstance(model, VelvetModel):
            raise ValueError(f"{model_path} holds a {type(model).__name__}, not a VelvetModel")
        if centre and size == "tiny" and model_path is None:
            phantoms = PhantomConfig(size=model.config.vision.volume_size, crop=0)
            centre_levels(model, phantom_batch(Split("train").seeds[: 2 * centre : 2], phantoms))
        super().__init__(model.train(), optimizer)
        self.objective = objective or ObjectiveConfig()
        self.seed = seed

    def compute_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
        """All losses of a batch of `mm.medical.velvet.data.phantom_batch`'s form."""
        total, losses = pretraining_losses(self.model, batch, self.objective, self._generator())
        logs: dict[str, Any] = {name: value.detach() for name, value in losses.items()}
        return total, logs | {"temperature": self.model.temperature().detach()}

    def batch_size(self, batch: Any) -> int:
        return len(batch["volume"])

    def _generator(self) -> torch.Generator:
        """Another one for every step and process, the same after a resumed run; one for all of evaluation."""
        step = self.global_step * self.trainer.world_size + self.trainer.global_rank if self.training else -1
        return torch.Generator().manual_seed((self.seed * 2**32 + step + 1) % 2**63)
