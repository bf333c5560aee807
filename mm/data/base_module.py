"""What the data modules share: who makes batches, how processes divide the work, and where a run stands."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

from lightning import LightningDataModule

from mm.data.collate import collate
from mm.data.loading import Collate, TrackedLoader

# The loader counts its batches itself, whatever the number of workers.
warnings.filterwarnings("ignore", message="Your `IterableDataset` has `__len__` defined")
# Own data without a validation part is an empty list of batches, which is meant.
warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")


class TrackedData(LightningDataModule):
    """Base of data modules whose training position is saved with every checkpoint.

    Args:
        processor: From samples to tensors. None takes the `processor` of the model that is trained. Without a trainer
            and a processor, batches are lists of samples.
    """

    def __init__(self, processor: Any = None) -> None:
        super().__init__()
        self.processor = processor
        self._loader: TrackedLoader | None = None

    @property
    def rank(self) -> int:
        """Number of this process."""
        return self.trainer.global_rank if self.trainer is not None else 0

    @property
    def world(self) -> int:
        """How many processes train together."""
        return self.trainer.world_size if self.trainer is not None else 1

    def find_processor(self) -> Any:
        """The processor that was given, or that of the model under training, or None."""
        if self.processor is not None or self.trainer is None:
            return self.processor
        module = getattr(self.trainer, "lightning_module", None)
        found = getattr(module, "processor", None)
        return found if found is not None else getattr(getattr(module, "model", None), "processor", None)

    def collate_for(self, *, answers: bool = True) -> Collate:
        """Function from samples to a batch; rows are padded on the left where answers are to be generated.

        Raises:
            ValueError: a trainer asks, but neither this module nor its model has a processor.
        """
        processor = self.find_processor()
        if processor is None and self.trainer is not None:
            raise ValueError(
                f"{type(self).__name__} has no processor to make tensors from samples: pass processor=..., or train a "
                "module whose `processor` or `model.processor` is one"
            )
        if processor is None:
            return list
        return partial(collate, processor=processor, answers=answers, padding_side="right" if answers else "left")

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Count a training batch as used; Lightning calls this once for each, right before its step."""
        if self.trainer is not None and self.trainer.training and self._loader is not None:
            self._loader.confirm()
        return batch
