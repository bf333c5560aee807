"""What a training run says about itself: loss, rate, gradient norm, speed, visual tokens, memory and time left."""

from __future__ import annotations

import logging
import math
import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from mm.metrics.flops import ExecutedFlops
from mm.training.curve import CurveLogger
from mm.training.module import TrainingModule

logger = logging.getLogger(__name__)
PLAIN_LINE_EVERY_S = 10.0


class Monitor(Callback):
    """Logs one row every `trainer.log_every_n_steps` optimiser steps, and a plain line now and then without a terminal.

    Columns: loss (mean over processes and accumulated batches), lr, grad_norm (before clipping), samples_per_s (all),
    visual_tokens_per_sample and whatever else the loss reports, memory_gib (peak: GPU allocator, or resident set),
    eta_s, tflop_per_step and tflop_per_s (one process; what the first batch executed forward and backward).

    Raises:
        ValueError: the loss is no longer finite; raised before a checkpoint of that state is written.
    """

    def __init__(self) -> None:
        self._samples = 0
        self._micro: list[Tensor] = []
        self._last_step = 0
        self._window_start = 0.0
        self._window_step = 0
        self._step_flops: int | None = None
        self._counter: ExecutedFlops | None = None
        self._said_at = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        """Open the first window; the curve drops the steps that a resumed run repeats."""
        for sink in trainer.loggers:
            if isinstance(sink, CurveLogger):
                sink.start(trainer.global_step)
        self._micro.clear()
        self._last_step = trainer.global_step
        self._window_start, self._window_step, self._samples = time.monotonic(), trainer.global_step, 0

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: Trainer, pl_module: TrainingModule, batch: Any, batch_idx: int
    ) -> None:
        """Count the FLOPs of the first batch while it runs."""
        if self._step_flops is None:
            self._counter = ExecutedFlops()
            self._counter.__enter__()

    def _stop_counting(self, trainer: Trainer) -> None:
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            self._step_flops = self._counter.total * trainer.accumulate_grad_batches
            self._counter = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """A failure within the first batch must not leave the counter active."""
        self._stop_counting(trainer)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: TrainingModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log at the end of an optimiser step whose turn it is."""
        self._stop_counting(trainer)
        self._samples += pl_module.batch_size(batch)
        self._micro.append(outputs["loss"].detach().float())
        if trainer.global_step == self._last_step:
            return  # in the middle of an accumulated step
        self._last_step = trainer.global_step
        loss = torch.stack(self._micro).mean() * trainer.accumulate_grad_batches  # Lightning divides by it
        self._micro.clear()
        every = max(trainer.log_every_n_steps, 1)  # type: ignore[attr-defined]
        due = trainer.global_step % every == 0 or trainer.global_step in (1, trainer.max_steps)
        if not due:
            return
        row = self._row(trainer, pl_module, loss, outputs.get("logs", {}))
        for sink in trainer.loggers:
            sink.log_metrics(row, step=trainer.global_step)
        for name in ("loss", "grad_norm"):
            pl_module.log(name, row[name], prog_bar=True, logger=False)
        self._say(trainer, row)
        if not math.isfinite(row["loss"]):
            raise ValueError(
                f"step {trainer.global_step}: the loss is {row['loss']}; lower optimizer.lr or raise optimizer.warmup, "
                "then run again: it resumes from the last checkpoint before this step"
            )
        self._window_start, self._window_step, self._samples = time.monotonic(), trainer.global_step, 0

    def _row(self, trainer: Trainer, module: TrainingModule, loss: Tensor, logs: dict[str, Any]) -> dict[str, float]:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = max(time.monotonic() - self._window_start, 1e-9)
        steps = trainer.global_step - self._window_step
        row = {"loss": _number(trainer.strategy.reduce(loss, reduce_op="mean"))}
        row |= {"lr": module.last_lr or 0.0, "grad_norm": _number(module.last_grad_norm)}
        row |= {key: _number(value) for key, value in logs.items()}
        row["samples_per_s"] = self._samples * trainer.world_size / seconds
        row["memory_gib"] = peak_memory_gib()
        row["eta_s"] = max(_total_steps(trainer) - trainer.global_step, 0) * seconds / steps
        if self._step_flops:
            row["tflop_per_step"] = self._step_flops / 1e12
            row["tflop_per_s"] = self._step_flops * steps / seconds / 1e12
        return row

    def _say(self, trainer: Trainer, row: dict[str, float]) -> None:
        """A line for logs of batch systems, where no progress bar is drawn."""
        last = trainer.global_step == trainer.max_steps
        if trainer.progress_bar_callback is not None or not trainer.is_global_zero:
            return
        if not last and time.monotonic() - self._said_at < PLAIN_LINE_EVERY_S:
            return
        self._said_at = time.monotonic()
        total = _total_steps(trainer)
        logger.info(
            "step %d/%s  loss %.4f  lr %.2e  grad norm %.3g  %.1f samples/s  %.2f GiB  %s left",
            trainer.global_step,
            "?" if total == float("inf") else int(total),
            row["loss"],
            row["lr"],
            row["grad_norm"],
            row["samples_per_s"],
            row["memory_gib"],
            clock(row["eta_s"]),
        )


def _number(value: Tensor | float | None) -> float:
    if value is None:
        return float("nan")
    if isinstance(value, Tensor):
        value = value.full_tensor() if hasattr(value, "full_tensor") else value  # sharded by FSDP2
        return value.item()
    return float(value)


def _total_steps(trainer: Trainer) -> float:
    return trainer.max_steps if trainer.max_steps > 0 else trainer.estimated_stepping_batches


def peak_memory_gib() -> float:
    """Peak memory of this process: allocated on its GPU if it has one, else resident in main memory; NaN if unknown."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20  # bytes there, KiB elsewhere


def clock(seconds: float) -> str:
    """Duration as h:mm:ss, "?" if unknown.

    Example:
        >>> clock(3725.4)
        '1:02:05'
    """
    if not math.isfinite(seconds):
        return "?"
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{left:02d}"
