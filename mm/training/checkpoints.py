"""Training checkpoints that survive a full disk, load without pickle and bring the random numbers back."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from mm.checkpoint import write_aside

LAST = "last.ckpt"
PLAIN = (type(None), bool, int, float, str, bytes, Tensor, torch.Size, torch.dtype, torch.device)


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes beside the final name and renames; refuses what `torch.load(weights_only=True)` could not read back."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint, whole or not at all.

        Raises:
            ValueError: an entry is no tensor and no plain value; its place in the checkpoint is named.
            OSError: the disk is full or not writable; the older checkpoint at `path` is still whole.
        """
        refuse_objects(checkpoint)
        with write_aside(path) as temporary:
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:  # torch reports a full disk as a RuntimeError of its zip writer
                raise OSError(f"{path}: not written ({error}); an older checkpoint there is still whole") from error


def refuse_objects(value: Any, place: str = "checkpoint") -> None:
    """Check that a checkpoint holds tensors and plain values only.

    Raises:
        ValueError: names the place and type of the first other object.
    """
    if isinstance(value, Mapping):
        for key, entry in value.items():
            refuse_objects(entry, f"{place}.{key}")
    elif isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        for index, entry in enumerate(value):
            refuse_objects(entry, f"{place}[{index}]")
    elif type(value) not in PLAIN and not isinstance(value, Tensor):
        raise ValueError(
            f"{place} is a {type(value).__name__}, which cannot be loaded with weights_only=True; "
            "store plain values (dataclasses.asdict, float(...))"
        )


class LastCheckpoint(Checkpoint):
    """Keeps one `last.ckpt`, rewritten every few optimiser steps and at the end of every epoch.

    Args:
        folder: Where it stands.
        every: Optimiser steps between two writes.
    """

    def __init__(self, folder: Path, every: int) -> None:
        if every < 1:
            raise ValueError(f"save_every must be at least 1 step, got {every}")
        self.path = folder / LAST
        self.every = every
        self._saved_at = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A resumed run need not write what it has just read."""
        self._saved_at = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after every `every`-th optimiser step."""
        if trainer.global_step % self.every == 0:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of an epoch, which the end of the run is too."""
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.global_step != self._saved_at and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._saved_at = trainer.global_step
            trainer.save_checkpoint(self.path)


class RandomState(Callback):
    """Stores the random states of all processes, so that dropout and sampling continue as if never interrupted."""

    def __init__(self) -> None:
        self._pending: list[Tensor] | None = None
        self._trainer: Trainer | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remember the trainer; states are collected through it."""
        self._trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        """Random states, one row per process."""
        own = pack_random_state()
        gathered = [torch.empty_like(own) for _ in range(self._world)]
        if self._world > 1:
            # CUDA backends move CUDA tensors only
            rows = [row.to(self._trainer.strategy.root_device) for row in gathered]  # type: ignore[union-attr]
            torch.distributed.all_gather(rows, own.to(rows[0].device))
            gathered = [row.cpu() for row in rows]
        else:
            gathered = [own]
        return {"states": gathered}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until training starts: building loaders in between draws numbers."""
        self._pending = state_dict["states"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore this process's state, if the number of processes is still the same."""
        if self._pending is not None and len(self._pending) == self._world:
            unpack_random_state(self._pending[trainer.global_rank])
        self._pending = None

    @property
    def _world(self) -> int:
        return self._trainer.world_size if self._trainer is not None else 1


def pack_random_state() -> Tensor:
    """States of torch (CPU and the current CUDA device), numpy and Python in one row of bytes."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # type: ignore[misc]
    version, words, gauss_next = random.getstate()
    assert name == "MT19937" and version == 3
    parts = [
        torch.get_rng_state(),
        torch.cuda.get_rng_state() if torch.cuda.is_available() else torch.zeros(16, dtype=torch.uint8),
        torch.from_numpy(np.asarray(keys, dtype=np.int64)).view(torch.uint8),
        torch.tensor([position, has_gauss], dtype=torch.int64).view(torch.uint8),
        torch.tensor([gauss], dtype=torch.float64).view(torch.uint8),
        torch.tensor(words, dtype=torch.int64).view(torch.uint8),
        torch.tensor([float("nan") if gauss_next is None else gauss_next], dtype=torch.float64).view(torch.uint8),
    ]
    sizes = torch.tensor([len(part) for part in parts], dtype=torch.int64).view(torch.uint8)
    return torch.cat([sizes, *parts])


def unpack_random_state(row: Tensor) -> None:
    """Set every generator to what `pack_random_state` found."""
    count = 7
    sizes = row[: 8 * count].clone().view(torch.int64).tolist()
    cpu, cuda, keys, flags, gauss, words, gauss_next = (p.clone() for p in row[8 * count :].split(sizes))
    torch.set_rng_state(cpu)
    if torch.cuda.is_available() and cuda.any():
        torch.cuda.set_rng_state(cuda)
    position, has_gauss = flags.view(torch.int64).tolist()
    state = keys.view(torch.int64).numpy().astype(np.uint32)
    np.random.set_state(("MT19937", state, position, has_gauss, gauss.view(torch.float64).item()))
    following = gauss_next.view(torch.float64).item()
    random.setstate((3, tuple(words.view(torch.int64).tolist()), None if following != following else following))
