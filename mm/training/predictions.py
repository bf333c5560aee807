"""Predictions as one JSON object per line, written while they are made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter


class JsonLines(BasePredictionWriter):
    """Writes what `predict_step` returns, a list of plain dicts with one per sample, to `predictions.jsonl`.

    The file gets its name when all are written; with several processes each writes its own, numbered by rank.

    Args:
        folder: Where the file goes.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(write_interval="batch")
        self.folder = folder
        self.count = 0
        self._file: TextIO | None = None

    def path(self, trainer: Trainer) -> Path:
        """Where this process writes."""
        rank = f"-{trainer.global_rank:04d}" if trainer.world_size > 1 else ""
        return self.folder / f"predictions{rank}.jsonl"

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Append the predictions of one batch.

        Raises:
            ValueError: they are no list of plain dicts.
        """
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path(trainer).with_suffix(".part").open("w", encoding="utf-8")
        if not isinstance(prediction, list) or not all(isinstance(row, dict) for row in prediction):
            raise ValueError(
                f"{type(pl_module).__name__}.predict_step must return a list of dicts, one per sample, got "
                f"{type(prediction).__name__}; tensors go through mm.training.FeatureWriter"
            )
        try:
            lines = [json.dumps(row, ensure_ascii=False) for row in prediction]
        except TypeError as error:
            raise ValueError(f"{type(pl_module).__name__}.predict_step: values must be plain, {error}") from error
        self._file.writelines(line + "\n" for line in lines)
        self.count += len(lines)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the complete file its name."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self.path(trainer).with_suffix(".part").replace(self.path(trainer))
