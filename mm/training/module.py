"""The LightningModule that every system's training module extends: one loss function, everything else settled here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import Tensor, nn

from mm.training.param_groups import GroupRule, assert_frozen_left_out, param_groups
from mm.training.schedule import build_schedule


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with warm-up, a schedule, clipping and named groups."""

    lr: float = 1e-3
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the first and second moment."""
    eps: float = 1e-8
    """AdamW's denominator offset."""
    weight_decay: float = 0.0
    """Decoupled decay of matrices; norms and biases never decay."""
    warmup: float = 0.03
    """Fraction of the run with a linearly rising rate."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Shape after the warm-up."""
    min_lr_ratio: float = 0.0
    """Rate at the end of the cosine, relative to `lr`."""
    clip_norm: float | None = 1.0
    """Largest gradient norm over all trainable parameters; none = no clipping."""
    groups: tuple[GroupRule, ...] = ()
    """Rules by parameter name, searched in order."""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"optimizer.lr must be above 0, got {self.lr}")
        if not 0 <= self.warmup < 1 or not 0 <= self.min_lr_ratio <= 1:
            raise ValueError(
                "optimizer.warmup must lie in [0, 1) and min_lr_ratio in [0, 1], "
                f"got {self.warmup} and {self.min_lr_ratio}"
            )
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"optimizer.clip_norm must be above 0 or null, got {self.clip_norm}")


class TrainingModule(LightningModule):
    """Base of all training modules. A subclass builds its model and writes `compute_loss`.

    Args:
        model: What is trained. Its frozen parameters (`requires_grad=False`) stay out of the optimiser.
        optimizer: Optimiser and schedule; defaults apply if none is given.

    Example:
        >>> class Regression(TrainingModule):
        ...     def compute_loss(self, batch):
        ...         return (self.model(batch["x"]) - batch["y"]).square().mean(), {}
        >>> module = Regression(nn.Linear(2, 1), OptimizerConfig(lr=0.1))
        >>> [group["name"] for group in module.parameter_groups()]
        ['rest', 'rest (no decay)']
    """

    def __init__(self, model: nn.Module, optimizer: OptimizerConfig | None = None) -> None:
        super().__init__()
        self.model = model
        self.optimizer = optimizer or OptimizerConfig()
        self.last_grad_norm: Tensor | None = None
        """Norm of all gradients at the last optimiser step, before clipping."""
        self.last_lr: float | None = None
        """Learning rate of the last optimiser step, without the factors of the groups."""

    # --- what a subclass writes --------------------------------------------------------------------------------------

    def compute_loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Loss of one batch and further numbers to log.

        Returns:
            loss: Scalar to minimise, a mean over the batch.
            logs: Scalars to log under their names. Two names have a meaning: `weight`, how many terms the mean runs
                over (answer tokens, say), makes several processes average exactly like one (accumulated batches still
                count alike); `visual_tokens_per_sample` is what the language model sees of a picture.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement compute_loss(batch)")

    def batch_size(self, batch: Any) -> int:
        """Samples in a batch: the first dimension of `input_ids`, or of the first tensor that is found."""
        if isinstance(batch, Tensor):
            return len(batch)
        if isinstance(batch, Mapping) and "input_ids" in batch:
            return len(batch["input_ids"])
        values = batch.values() if isinstance(batch, Mapping) else batch
        return next(self.batch_size(value) for value in values if isinstance(value, Tensor | Mapping | list | tuple))

    # --- steps -------------------------------------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Loss of one batch, weighted so that the mean over processes is the mean over all terms."""
        loss, logs = self.compute_loss(batch)
        shown = {key: value.detach() if isinstance(value, Tensor) else value for key, value in logs.items()}
        weight = shown.pop("weight", None)
        return {"loss": loss * self._share(weight), "logs": shown}

    def _share(self, weight: Tensor | float | None) -> Tensor | float:
        """Factor that turns a mean of per-process means into the mean over all terms: weight / mean weight."""
        if weight is None or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return 1.0
        own = torch.as_tensor(weight, dtype=torch.float32, device=self.device)
        total = own.clone()
        torch.distributed.all_reduce(total)
        return own * torch.distributed.get_world_size() / total.clamp(min=1e-12)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss and numbers of one batch as `val/…`."""
        self._log_evaluation("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss and numbers of one batch as `test/…`."""
        self._log_evaluation("test", batch)

    def _log_evaluation(self, stage: str, batch: Any) -> None:
        loss, logs = self.compute_loss(batch)
        weight = logs.pop("weight", None)
        size = self.batch_size(batch)
        terms = size if weight is None else max(int(weight), 1)
        self.log(f"{stage}/loss", loss, batch_size=terms, on_epoch=True, sync_dist=True, prog_bar=True)
        self.log_dict(
            {f"{stage}/{key}": float(logs[key]) for key in logs}, batch_size=size, on_epoch=True, sync_dist=True
        )

    # --- optimiser ---------------------------------------------------------------------------------------------------

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups of the trainable parameters, after the rules of the configuration."""
        config = self.optimizer
        groups = param_groups(self, config.groups, lr=config.lr, weight_decay=config.weight_decay)
        assert_frozen_left_out(groups, self)
        return groups

    def configure_optimizers(self) -> Any:
        """AdamW and the schedule over the steps of this run.

        Raises:
            ValueError: the run has no end, so that there is nothing to schedule over.
        """
        config = self.optimizer
        optimizer = torch.optim.AdamW(self.parameter_groups(), lr=config.lr, betas=config.betas, eps=config.eps)
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ValueError("the run has no end: set trainer.max_steps (or trainer.max_epochs over finite data)")
        schedule = build_schedule(
            optimizer,
            total_steps=int(steps),
            warmup=config.warmup,
            floor=config.min_lr_ratio,
            shape=config.schedule,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """A resumed run takes its rate from its own schedule, also when it is longer than the first one was."""
        for entry in self.trainer.lr_scheduler_configs:
            schedule: Any = entry.scheduler
            rates = zip(schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
            for group, base, factor in rates:
                group["lr"] = base * factor(schedule.last_epoch)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the norm of all gradients, and keep norm and rate of this step for the log."""
        if gradient_clip_val is not None:
            raise ValueError(
                f"trainer.gradient_clip_val={gradient_clip_val} would be ignored: "
                "set model.init_args.optimizer.clip_norm"
            )
        limit = float("inf") if self.optimizer.clip_norm is None else self.optimizer.clip_norm
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.last_grad_norm = nn.utils.clip_grad_norm_(parameters, limit)
        first = optimizer.param_groups[0]
        self.last_lr = first["lr"] / first["lr_scale"]
