"""Features of a frozen model, computed once for a whole corpus: sharded safetensors files with a JSON index.

Written through `Trainer.predict`. A run that is interrupted and started again leaves the same bytes as one that was
not: shards are complete or absent, and a restart begins at the first missing shard.

    cache = FeatureCache(folder)
    todo = cache.missing(keys)                      # unique keys, in order, without those already there
    trainer = Trainer(callbacks=[FeatureWriter(folder, shard_items=1024)], ...)
    trainer.predict(module, loader_over(todo), return_predictions=False)
    cache = FeatureCache(folder); cache["some key"]  # {"tokens": Tensor}

`predict_step` returns {"keys": list[str], "features": {name: Tensor (B, ...) or list of B tensors}}.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mm.checkpoint import read_json, write_aside, write_json

logger = logging.getLogger(__name__)
OPEN_SHARDS = 64


class FeatureCache(Mapping[str, dict[str, Tensor]]):
    """Reads a folder of features; a shard is opened when one of its keys is asked for.

    Args:
        folder: Where the features are; a folder without any is an empty cache.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._places: dict[str, tuple[str, int]] = {}
        for path in sorted(self.folder.glob("index-*.json")):
            for shard, keys in read_json(path)["shards"].items():
                self._places.update({key: (shard, row) for row, key in enumerate(keys)})
        self._open = lru_cache(maxsize=OPEN_SHARDS)(self._open_shard)

    def __getitem__(self, key: str) -> dict[str, Tensor]:
        """Features of one key, each as it was written.

        Raises:
            KeyError: not in this cache.
        """
        shard, row = self._places[key]
        file, names = self._open(shard)
        return {name: file.get_tensor(f"{row:06d}.{name}") for name in names[row]}

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Keys that still need computing: each once, in their order."""
        return [key for key in dict.fromkeys(keys) if key not in self._places]

    def _open_shard(self, shard: str) -> tuple[Any, dict[int, list[str]]]:
        file = safe_open(self.folder / shard, framework="pt")
        names: dict[int, list[str]] = {}
        for entry in file.keys():  # noqa: SIM118 - not a dict
            row, _, name = entry.partition(".")
            names.setdefault(int(row), []).append(name)
        return file, names


class FeatureWriter(BasePredictionWriter):
    """Collects what `predict_step` returns into shards; each process writes its own.

    A shard is written beside its name and renamed, then the index: whatever is in the index is whole. Make
    `shard_items` a multiple of the batch size, so that a restart forms the same batches: another grouping may change
    the last bits of a feature. A key that comes again is dropped and counted.

    Args:
        folder: Where the features go; an older part there is continued.
        shard_items: Keys per shard.
    """

    def __init__(self, folder: str | Path, *, shard_items: int = 1024) -> None:
        super().__init__(write_interval="batch")
        if shard_items < 1:
            raise ValueError(f"shard_items must be at least 1, got {shard_items}")
        self.folder = Path(folder)
        self.shard_items = shard_items
        self.written = 0
        self.skipped = 0
        self._shards: dict[str, list[str]] = {}
        self._known: set[str] = set()
        self._pending: dict[str, dict[str, Tensor]] = {}
        self._warned = False

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read what is there already."""
        self.folder.mkdir(parents=True, exist_ok=True)
        index = self._index_path(trainer)
        self._shards = read_json(index)["shards"] if index.is_file() else {}
        self._known = set(FeatureCache(self.folder))
        self._pending.clear()

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
        """Take the features of one batch; write a shard when it is full.

        Raises:
            ValueError: keys and features do not count alike.
        """
        keys, features = prediction["keys"], prediction["features"]
        for name, values in features.items():
            if len(values) != len(keys):
                raise ValueError(f"batch {batch_idx}: {len(keys)} keys, but {len(values)} rows of feature {name!r}")
        for row, key in enumerate(keys):
            if key in self._known:
                self.skipped += 1  # computed for nothing: the loader should run over FeatureCache.missing(keys)
                continue
            self._known.add(key)
            self._pending[key] = {name: values[row].detach().cpu().contiguous() for name, values in features.items()}
            if len(self._pending) == self.shard_items:
                self._flush(trainer)
                self._warn_if_split(row + 1, len(keys))

    def _warn_if_split(self, taken: int, size: int) -> None:
        if taken < size and not self._warned:
            self._warned = True
            logger.warning(
                "a batch of %d ends in the middle of a shard of %d: make shard_items a multiple of the batch size, or "
                "a restart forms other batches and may change the last bits of features",
                size,
                self.shard_items,
            )

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last, shorter shard."""
        if self._pending:
            self._flush(trainer)
        if self.skipped:
            logger.info(
                "%d features were computed again and dropped; run over FeatureCache.missing(keys)", self.skipped
            )
        logger.info("%d new features in %s, %d in all", self.written, self.folder, len(self._known))

    def _flush(self, trainer: Trainer) -> None:
        shard = f"features-{trainer.global_rank:04d}-{len(self._shards):06d}.safetensors"
        rows = enumerate(self._pending.values())
        # A row gets its own storage: a view would drag its whole batch into the file.
        tensors = {f"{row:06d}.{name}": value.clone() for row, entry in rows for name, value in entry.items()}
        with write_aside(self.folder / shard) as path:
            save_file(tensors, path, metadata={"keys": json.dumps(list(self._pending))})
        self._shards[shard] = list(self._pending)
        with write_aside(self._index_path(trainer)) as path:
            write_json(path, {"shards": self._shards})
        self.written += len(self._pending)
        self._pending.clear()

    def _index_path(self, trainer: Trainer) -> Path:
        return self.folder / f"index-{trainer.global_rank:04d}.json"
