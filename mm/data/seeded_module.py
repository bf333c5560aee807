"""Data modules of ready-made batches: shorthand and other text for a language model, labelled patches for a tower.

Their batches are made whole from consecutive seeds, which is much faster than collating single samples.
Dims: B rows or pictures, N tokens, H = W = 64 pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import DataLoader

from mm.data.base_module import TrackedData
from mm.data.dense import dense_batch
from mm.data.loading import Stream, TrackedLoader, worker
from mm.data.scenes import SceneConfig
from mm.data.split import Split, SplitName
from mm.data.text import TextConfig, answer_mask, text_batch

Make = Callable[[Sequence[int]], dict[str, Tensor]]


class SeededStream(Stream):
    """Endless batches of consecutive training seeds; `position` counts the seeds that all processes have used."""

    def __init__(self, make: Make, batch_size: int, *, rank: int, world: int, position: int) -> None:
        self.make, self.batch_size, self.rank, self.world, self.position = make, batch_size, rank, world, position

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], int]]:
        number, workers = worker()
        step = self.batch_size * self.world
        first = self.position + number * step + self.rank * self.batch_size
        seeds = Split("train").seeds
        while True:
            yield self.make(seeds[first : first + self.batch_size]), step
            first += workers * step

    def advance(self, mark: int) -> None:
        self.position += mark


class SeededBatches(TrackedData):
    """Base: a subclass gives `make(seeds) -> batch`.

    Args:
        batch_size: Seeds per batch and process.
        held_out_batches: Batches of the fixed validation and test sets.
        workers: Loading processes.
    """

    def __init__(self, make: Make, *, batch_size: int, held_out_batches: int, workers: int) -> None:
        super().__init__()
        if batch_size < 1 or held_out_batches < 1 or workers < 0:
            raise ValueError(
                "batch_size and held_out_batches must be at least 1, workers at least 0, "
                f"got {batch_size}, {held_out_batches}, {workers}"
            )
        self.make, self.batch_size, self.held_out_batches, self.workers = make, batch_size, held_out_batches, workers
        self.position = 0

    def train_dataloader(self) -> DataLoader:
        stream = SeededStream(self.make, self.batch_size, rank=self.rank, world=self.world, position=self.position)
        self._loader = TrackedLoader(stream, batches=1000, workers=self.workers)
        return self._loader

    def val_dataloader(self) -> DataLoader:
        """The fixed validation batches."""
        return self._fixed("validation")

    def test_dataloader(self) -> DataLoader:
        """The fixed test batches."""
        return self._fixed("test")

    def _fixed(self, split: SplitName) -> DataLoader:
        seeds, size = Split(split).seeds, self.batch_size
        numbers = range(self.rank, self.held_out_batches, self.world)
        batches = [self.make(seeds[number * size : (number + 1) * size]) for number in numbers]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        stream = None if self._loader is None else self._loader.stream
        return {"position": stream.position if isinstance(stream, SeededStream) else self.position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.position = int(state_dict["position"])
        if self._loader is not None:
            self._loader.stream.position = self.position  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True)
class TextDataConfig:
    """Rows of text for a language model."""

    text: TextConfig = field(default_factory=TextConfig)
    """Which documents."""
    length: int = 128
    """Tokens per row (N)."""
    batch_size: int = 32
    """Rows per batch and process (B)."""
    held_out_batches: int = 8
    """Batches of the validation and test sets."""
    workers: int = 0
    """Loading processes."""


class TextData(SeededBatches):
    """Text documents as `input_ids`, `labels` (B, N) int64 and `answers` (B, N) bool, True on answers."""

    def __init__(self, config: TextDataConfig | None = None) -> None:
        self.config = config or TextDataConfig()
        super().__init__(
            partial(text_rows, self.config),
            batch_size=self.config.batch_size,
            held_out_batches=self.config.held_out_batches,
            workers=self.config.workers,
        )


def text_rows(config: TextDataConfig, seeds: Sequence[int]) -> dict[str, Tensor]:
    """The documents of consecutive seeds as one batch."""
    input_ids, labels = text_batch(seeds[0], len(seeds), config.length, config.text)
    arrays = {"input_ids": input_ids, "labels": labels, "answers": answer_mask(input_ids)}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@dataclass(frozen=True, kw_only=True)
class DenseDataConfig:
    """Pictures with a label for every patch."""

    scenes: SceneConfig = field(default_factory=SceneConfig)
    """What scenes contain."""
    batch_size: int = 32
    """Pictures per batch and process (B)."""
    held_out_batches: int = 8
    """Batches of the validation and test sets."""
    workers: int = 0
    """Loading processes."""


class DenseData(SeededBatches):
    """Pictures (B, 3, 64, 64) float in 0..1 and, per target, labels (B, 64) int64 in raster order."""

    def __init__(self, config: DenseDataConfig | None = None) -> None:
        self.config = config or DenseDataConfig()
        super().__init__(
            partial(dense_rows, self.config),
            batch_size=self.config.batch_size,
            held_out_batches=self.config.held_out_batches,
            workers=self.config.workers,
        )


def dense_rows(config: DenseDataConfig, seeds: Sequence[int]) -> dict[str, Tensor]:
    """The pictures of consecutive seeds as one batch."""
    pictures, labels = dense_batch(seeds, scenes=config.scenes)
    batch = {name: rearrange(torch.from_numpy(plane), "b h w -> b (h w)") for name, plane in labels.items()}
    return {"pictures": rearrange(torch.from_numpy(pictures), "b h w c -> b c h w").float() / 255, **batch}
