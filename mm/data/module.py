"""Endless procedural data for training, fixed held-out sets for validation and test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch.utils.data import DataLoader

from mm.data.base_module import TrackedData
from mm.data.loading import Collate, Pass, Stream, TrackedLoader, pass_loader, worker
from mm.data.sample import VisualSample
from mm.data.split import Split, SplitName
from mm.data.tasks import TaskConfig, make_sample, task_of

RUN_SEEDS = 2**32
"""Training seeds that belong to one run seed."""
RUNS = 256


@dataclass(frozen=True, kw_only=True)
class ProceduralConfig:
    """A mixture of procedural tasks and how it is loaded."""

    tasks: dict[str, float] = field(default_factory=lambda: {"boards": 1.0})
    """Task name -> weight; names in `mm.data.tasks.TASKS`."""
    content: TaskConfig = field(default_factory=TaskConfig)
    """What the tasks show and ask."""
    seed: int = 0
    """Which training samples, 0 to 255; validation and test sets are the same for all seeds."""
    batch_size: int = 32
    """Samples per batch and process."""
    workers: int = 0
    """Loading processes; the samples and their order don't depend on it."""
    train_batches: int = 1000
    """Batches that count as one epoch; the next epoch goes on with new samples."""
    validation_samples: int = 512
    """Size of the validation set."""
    test_samples: int = 1024
    """Size of the test set."""

    def __post_init__(self) -> None:
        task_of(0, self.tasks)
        if not 0 <= self.seed < RUNS:
            raise ValueError(f"seed must be in 0..{RUNS - 1}, got {self.seed}")
        for name in ("batch_size", "train_batches", "validation_samples", "test_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.workers < 0:
            raise ValueError(f"workers must be at least 0, got {self.workers}")


def numbered_sample(config: ProceduralConfig, split: SplitName, index: int) -> VisualSample:
    """Sample number `index` of a split; the run seed moves the training samples only."""
    start = config.seed * RUN_SEEDS if split == "train" else 0
    return make_sample(Split(split).seed(start + index), config.tasks, config.content)


def held_out(config: ProceduralConfig, split: SplitName, count: int, index: int, parts: int) -> Iterator[VisualSample]:
    """Every `parts`-th of the first `count` samples of a split, from number `index` on."""
    return (numbered_sample(config, split, number) for number in range(index, count, parts))


class ProceduralStream(Stream):
    """Batches of consecutive seeds; all processes together take one slice of the seeds per step.

    Args:
        config: The mixture.
        collate: From samples to a batch.
        rank: Number of this process.
        world: How many processes there are.
        samples_seen: Where to begin: samples that all processes together have used.
    """

    def __init__(
        self, config: ProceduralConfig, collate: Collate, *, rank: int = 0, world: int = 1, samples_seen: int = 0
    ) -> None:
        self.config, self.collate, self.rank, self.world = config, collate, rank, world
        self.samples_seen = samples_seen

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        number, workers = worker()
        size, step = self.config.batch_size, self.config.batch_size * self.world
        first = self.samples_seen + number * step + self.rank * size
        while True:
            yield self.collate([numbered_sample(self.config, "train", first + i) for i in range(size)]), step
            first += workers * step

    def advance(self, mark: int) -> None:
        self.samples_seen += mark


class ProceduralData(TrackedData):
    """Lightning data module over the procedural tasks.

    A run that is killed goes on with the next seeds: the number of samples used so far is part of every checkpoint.

    Args:
        config: The mixture; default: questions about boards.
        processor: From samples to tensors; default: that of the model.

    Example:
        >>> data = ProceduralData(ProceduralConfig(batch_size=2))
        >>> batch = next(iter(data.train_dataloader()))
        >>> [sample.question for sample in batch] == [data.sample("train", i).question for i in range(2)]
        True
    """

    def __init__(self, config: ProceduralConfig | None = None, processor: Any = None) -> None:
        super().__init__(processor)
        self.config = config or ProceduralConfig()
        self.samples_seen = 0

    def sample(self, split: SplitName, index: int) -> VisualSample:
        """Sample number `index` of a split, as this module yields it."""
        return numbered_sample(self.config, split, index)

    def train_dataloader(self) -> DataLoader:
        stream = ProceduralStream(
            self.config, self.collate_for(), rank=self.rank, world=self.world, samples_seen=self.samples_seen
        )
        self._loader = TrackedLoader(stream, batches=self.config.train_batches, workers=self.config.workers)
        return self._loader

    def val_dataloader(self) -> DataLoader:
        return self._pass("validation", self.config.validation_samples)

    def test_dataloader(self) -> DataLoader:
        return self._pass("test", self.config.test_samples)

    def predict_dataloader(self) -> DataLoader:
        """The test questions without their answers."""
        return self._pass("test", self.config.test_samples, answers=False)

    def _pass(self, split: SplitName, count: int, *, answers: bool = True) -> DataLoader:
        samples = Pass(
            partial(held_out, self.config, split, count),
            self.config.batch_size,
            self.collate_for(answers=answers),
            rank=self.rank,
            world=self.world,
        )
        return pass_loader(samples, workers=self.config.workers)

    def state_dict(self) -> dict[str, Any]:
        stream = None if self._loader is None else self._loader.stream
        return {"samples_seen": stream.samples_seen if stream is not None else self.samples_seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.samples_seen = int(state_dict["samples_seen"])
        if self._loader is not None:
            self._loader.stream.samples_seen = self.samples_seen
