"""Loading that knows where it is: a killed run goes on with the samples that it has not trained on yet.

A data stream lives in the main process and holds its position; workers get a copy of it when an epoch begins. Every
batch comes back with a mark, what the position is once this batch has been trained on. The loader keeps the marks of
batches that were fetched ahead and moves the position only when a batch is confirmed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mm.data.sample import VisualSample

Collate = Callable[[Sequence[VisualSample]], Any]


def worker() -> tuple[int, int]:
    """Number of this loading process and how many there are; (0, 1) in the main process."""
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


class Stream(IterableDataset):
    """An endless stream of (batch, mark)."""

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """Batches of this worker from the position on."""

    @abstractmethod
    def advance(self, mark: Any) -> None:
        """Move the position behind the batch that came with `mark`."""


class TrackedLoader(DataLoader):
    """Loads a stream and yields its batches alone; `confirm` once per batch that was used.

    Args:
        stream: Where batches come from.
        batches: Batches per epoch (B), the length of the loader.
        workers: Loading processes; 0 loads in the main process.
    """

    def __init__(self, stream: Stream, *, batches: int, workers: int = 0) -> None:
        super().__init__(stream, batch_size=None, num_workers=workers)
        self.stream: Any = stream  # a data module reads and sets the position of its own kind of stream
        self.batches = batches
        self._unconfirmed: deque[Any] = deque()

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch declares its private iterator class
        self._unconfirmed.clear()
        for batch, mark in islice(super().__iter__(), self.batches):
            self._unconfirmed.append(mark)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Empty: the position is saved with the data module. Having the method tells Lightning that it is saved."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore here, see `state_dict`."""

    def confirm(self) -> None:
        """The oldest batch that was fetched has been used.

        Raises:
            RuntimeError: no batch is waiting.
        """
        if not self._unconfirmed:
            raise RuntimeError("a batch was confirmed that this loader did not yield")
        self.stream.advance(self._unconfirmed.popleft())


def batched(samples: Iterable[VisualSample], size: int) -> Iterator[list[VisualSample]]:
    """Lists of `size` samples; the last one may be shorter."""
    iterator = iter(samples)
    while group := list(islice(iterator, size)):
        yield group


class Pass(IterableDataset):
    """One pass over samples, for validation and test: this worker's batches of `samples(part, parts)`.

    Args:
        samples: `f(index, count)` gives every count-th sample from number `index` on.
        batch_size: Samples per batch.
        collate: From samples to a batch.
        rank: Number of this process.
        world: How many processes share the pass.
    """

    def __init__(
        self,
        samples: Callable[[int, int], Iterable[VisualSample]],
        batch_size: int,
        collate: Collate,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.samples, self.batch_size, self.collate = samples, batch_size, collate
        self.rank, self.world = rank, world

    def __iter__(self) -> Iterator[Any]:
        number, workers = worker()
        part = self.samples(self.rank * workers + number, self.world * workers)
        for group in batched(part, self.batch_size):
            yield self.collate(group)


def pass_loader(samples: Pass, *, workers: int = 0) -> DataLoader:
    """Loader of one pass."""
    return DataLoader(samples, batch_size=None, num_workers=workers)
