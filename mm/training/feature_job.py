"""Which features are still to be computed, divided into whole shards, and the way they get into the cache.

A shard's number and keys follow from the list of keys alone: every process computes the same plan, takes the shards
whose number is its own modulo the number of processes, and a batch never crosses the edge of a shard. So the files are
the same, byte for byte, whether one process or eight wrote them, in one go or after interruptions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mm.checkpoint import write_aside, write_json
from mm.training.feature_cache import IDENTITY_FILE, FeatureCache
from mm.training.feature_shards import write_shard

logger = logging.getLogger(__name__)
Read = Callable[[list[str]], Any]
"""From some keys to the batch that `predict_step` gets."""


@dataclass(frozen=True)
class ShardTask:
    """One shard that is to be computed."""

    number: int
    """Of the shard."""
    keys: tuple[str, ...]
    """In the order of its rows."""


class FeatureJob:
    """What one process has to do so that a folder holds the features of all keys.

    Args:
        folder: The cache; an older part there is continued, damaged shards are computed anew.
        keys: All keys; one that comes again is computed once.
        identity: Plain values that the features depend on (fingerprint of the model, layer, ...); kept beside them and
            compared.
        about: The same in words for people (name of the model, ...); kept, not compared.
        shard_items: Keys per shard.
        rank: Number of this process.
        world: How many processes share the work; they need no connection with each other.

    Attributes:
        tasks: The shards of this process.

    Raises:
        ValueError: the folder holds features of another identity, or a number is out of range.
    """

    def __init__(
        self,
        folder: str | Path,
        keys: Iterable[str],
        *,
        identity: Mapping[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
        shard_items: int = 1024,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if shard_items < 1 or not 0 <= rank < world:
            raise ValueError(
                f"need shard_items >= 1 and 0 <= rank < world, got shard_items={shard_items}, rank={rank}, "
                f"world={world}"
            )
        self.folder = Path(folder)
        self.identity, self.about = dict(identity or {}), dict(about or {})
        self.rank, self.world = rank, world
        cache = FeatureCache(self.folder, identity=self.identity)
        self.tasks = [task for task in _plan(cache, keys, shard_items) if task.number % world == rank]

    def __len__(self) -> int:
        """Keys that this process computes."""
        return sum(len(task.keys) for task in self.tasks)

    def batches(self, size: int, *, cost: Callable[[str], int] | None = None) -> Iterator[list[str]]:
        """Keys to compute together, shard after shard.

        Args:
            size: Keys per batch; the last of a shard may be smaller.
            cost: Keys of similar cost (text length) come together within a shard, cheap ones first.
        """
        for task in self.tasks:
            keys = task.keys if cost is None else sorted(task.keys, key=cost)
            yield from map(list, _groups(keys, size))

    def loader(
        self, read: Read, *, batch_size: int, workers: int = 0, cost: Callable[[str], int] | None = None
    ) -> DataLoader[Any]:
        """Loader for `Trainer.predict` with the callback `FeatureWriter`.

        Args:
            read: From keys to a batch; called in the loading processes.
            batch_size: Keys per batch.
            workers: Loading processes; the order of the batches does not depend on them.
            cost: See `batches`.
        """
        return DataLoader(_Batches(self, read, batch_size, cost), batch_size=None, num_workers=workers)

    def collector(self) -> ShardCollector:
        """What takes computed features and writes shards."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / IDENTITY_FILE).is_file():
            with write_aside(self.folder / IDENTITY_FILE) as path:
                write_json(path, {"identity": self.identity, "about": self.about})
        return ShardCollector(self.folder, self.tasks)


class ShardCollector:
    """Takes features batch by batch; a shard is written when its last key has come.

    Args:
        folder: The cache.
        tasks: The shards to be filled.

    Attributes:
        written: Keys in shards that were written.
    """

    def __init__(self, folder: Path, tasks: Sequence[ShardTask]) -> None:
        self.folder = folder
        self.written = 0
        self._owner = {key: task for task in tasks for key in task.keys}
        self._pending: dict[int, dict[str, dict[str, Tensor]]] = {}

    def add(self, keys: Sequence[str], features: Mapping[str, Sequence[Tensor] | Tensor]) -> None:
        """Take the features of one batch.

        Args:
            keys: What was computed.
            features: Name -> (B, ...) or a list of B tensors.

        Raises:
            ValueError: keys and features do not count alike, or a key was not to be computed.
        """
        for name, values in features.items():
            if len(values) != len(keys):
                raise ValueError(f"{len(keys)} keys, but {len(values)} rows of feature {name!r}")
        columns = {name: [value.detach() for value in _on_cpu(values)] for name, values in features.items()}
        for row, key in enumerate(keys):
            if key not in self._owner:
                raise ValueError(f"features of {key!r} came, which this job does not ask for (or had already)")
            task = self._owner.pop(key)
            pending = self._pending.setdefault(task.number, {})
            pending[key] = {name: column[row] for name, column in columns.items()}
            if len(pending) == len(task.keys):
                write_shard(self.folder, task.number, {key: pending[key] for key in task.keys})
                del self._pending[task.number]
                self.written += len(task.keys)

    def close(self) -> int:
        """Keys that are in no shard: they did not come, or their shard is not full. Nothing partial is written."""
        left = len(self._owner) + sum(map(len, self._pending.values()))
        logger.info("%s: %d features written, %d left for the next run", self.folder, self.written, left)
        self._pending.clear()
        return left


def _on_cpu(values: Sequence[Tensor] | Tensor) -> Iterable[Tensor]:
    return values.cpu() if isinstance(values, Tensor) else [value.cpu() for value in values]


def _plan(cache: FeatureCache, keys: Iterable[str], shard_items: int) -> list[ShardTask]:
    """All shards that are missing or damaged; the same in every process, whatever others have finished meanwhile.

    New keys fill the free numbers in order. A shard that was finished takes its keys and its number out of the
    plan together, so that the numbers of the others stay.
    """
    again = [ShardTask(number, tuple(cache.keys_of(number))) for number in cache.faults]
    rebuilt = {key for task in again for key in task.keys}
    new = [key for key in cache.missing(keys) if key not in rebuilt]
    taken = set(cache.numbers)
    free = (number for number in count() if number not in taken)
    parts = zip(free, _groups(new, shard_items), strict=False)
    return again + [ShardTask(number, tuple(part)) for number, part in parts]


def _groups(keys: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (keys[start : start + size] for start in range(0, len(keys), size))


class _Batches(IterableDataset[Any]):
    """Batches of a job; loading processes take turns."""

    def __init__(self, job: FeatureJob, read: Read, batch_size: int, cost: Callable[[str], int] | None) -> None:
        self.job, self.read, self.batch_size, self.cost = job, read, batch_size, cost

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        number, workers = (info.id, info.num_workers) if info else (0, 1)
        for index, keys in enumerate(self.job.batches(self.batch_size, cost=self.cost)):
            if index % workers == number:
                yield self.read(keys)
