"""Exponential moving average of the weights, used for validation and kept at the end of the run."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMA(WeightAveraging):
    """Lightning's weight averaging with three changes that matter beside a frozen language model.

    The average is a `lerp`, which leaves equal numbers bit-equal (decay * w + (1 - decay) * w does not), so frozen
    weights stay what they were; frozen weights are shared with the live model instead of stored twice; buffers are
    copied, not averaged, because counters and masks have no mean.

    Args:
        decay: Weight of the past in each step, 0 to 1; the average looks back about 1 / (1 - decay) steps.

    Raises:
        ValueError: decay outside [0, 1).
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema must lie in [0, 1), got {decay}")
        # Lightning swaps the buffers of both models whether they are averaged or not; they hold the same values.
        super().__init__(use_buffers=False, multi_avg_fn=get_ema_multi_avg_fn(decay))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Create the average when fitting begins."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._share_frozen(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow the model to its device: it was still on the CPU at set-up."""
        assert self._average_model is not None
        self._average_model.to(pl_module.device)
        self._share_frozen(pl_module)

    def _share_frozen(self, pl_module: LightningModule) -> None:
        assert self._average_model is not None
        for average, current in zip(self._average_model.module.parameters(), pl_module.parameters(), strict=True):
            if not current.requires_grad:
                average.data = current.data

    def state_dict(self) -> dict[str, Any]:
        """Steps and epochs that the average has seen."""
        return {"latest_update_step": self._latest_update_step, "latest_update_epoch": self._latest_update_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the checkpoint stood."""
        self._latest_update_step = state_dict["latest_update_step"]
        self._latest_update_epoch = state_dict["latest_update_epoch"]
