"""The callback through which `Trainer.predict` fills a feature cache."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from mm.training.feature_job import FeatureJob, ShardCollector


class FeatureWriter(BasePredictionWriter):
    """Writes what `predict_step` returns into the cache of the job whose loader feeds it.

    `predict_step` returns {"keys": list[str], "features": {name: Tensor (B, ...) or list of B tensors}}. With several
    processes make the loader in `predict_dataloader` of a data module, where the number of the process is known.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="batch")
        self._collector: ShardCollector | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the job.

        Raises:
            ValueError: the loader is not that of a `FeatureJob`, or its job is for another process.
        """
        job = getattr(getattr(trainer.predict_dataloaders, "dataset", None), "job", None)
        if not isinstance(job, FeatureJob):
            raise ValueError("FeatureWriter needs the loader of a job: trainer.predict(module, job.loader(...))")
        if (job.rank, job.world) != (trainer.global_rank, trainer.world_size):
            raise ValueError(
                f"the job is for process {job.rank} of {job.world}, this is process {trainer.global_rank} of "
                f"{trainer.world_size}; build it in predict_dataloader of a data module with rank and world"
            )
        self._collector = job.collector()
        # Lightning looks for positions in a map-style data set; here a row is known by its key.
        warnings.filterwarnings("ignore", message="Couldn't infer the batch indices")

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
        """Take the features of one batch."""
        assert self._collector is not None
        self._collector.add(prediction["keys"], prediction["features"])

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what was written."""
        assert self._collector is not None
        self._collector.close()
