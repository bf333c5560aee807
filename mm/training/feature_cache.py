"""Features of a frozen model, computed once for a whole corpus: memory-mapped safetensors shards.

    job = FeatureJob(folder, keys, identity={"model": ...})   # what is missing, in whole shards
    trainer = Trainer(callbacks=[FeatureWriter()], ...)
    trainer.predict(module, job.loader(read, batch_size=32), return_predictions=False)
    cache = FeatureCache(folder); cache["some key"]           # {"tokens": Tensor}
    cache.gather(keys, "tokens")                              # (B, ...)

This file reads; `feature_job` divides the work and writes, `feature_writer` is the callback of `Trainer.predict`.
Dims: B keys asked for, N keys in the cache, P rows picked of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mm.checkpoint import read_json
from mm.extras import require
from mm.training.feature_shards import Shard, damage, digests, fault, shard_entry, shard_numbers, shard_path

LONG_ROW = 4096
"""Bytes from which a row is copied by itself: straight to its place costs less than once more through memory."""
IDENTITY_FILE = "identity.json"
OPEN_SHARDS = 4096
"""Maps of files that stay open; they take address space, not memory."""


class FeatureCache(Mapping[str, dict[str, Tensor]]):
    """Reads a folder of features; a shard is opened when one of its keys is asked for.

    Keys are found by their digest in a sorted table of 24 bytes per key, which worker processes share.

    Args:
        folder: Where the features are; a folder without any is an empty cache.
        identity: What the features must have been computed with (model, layer, ...); None takes what is there.

    Attributes:
        identity: What they were computed with; None in an empty folder.
        about: The same in words for people, which are not compared.

    Raises:
        ValueError: they were computed with something else; the message names what differs.
    """

    def __init__(self, folder: str | Path, *, identity: Mapping[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        self.identity, self.about = stored_identity(self.folder)
        if identity is not None and self.identity is not None:
            refuse_other_identity(self.folder, self.identity, identity, self.about)
        self.numbers = shard_numbers(self.folder)
        self.faults = {n: what for n in self.numbers if (what := fault(shard_path(self.folder, n)))}
        self._open = lru_cache(maxsize=OPEN_SHARDS)(lambda number: Shard(shard_path(self.folder, number)))
        self._heads, self._tails, self._places = self._table()

    def _table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Halves of all digests, sorted by the first, and the place of each: shard number << 32 | row."""
        parts = [(number, self._digests(number)) for number in self.numbers]
        every = np.concatenate([np.empty((0, 2), np.uint64), *(part for _, part in parts)])
        places = [(number << 32) + np.arange(len(part), dtype=np.int64) for number, part in parts]
        place = np.concatenate([np.empty(0, np.int64), *places])
        order = np.argsort(every[:, 0], kind="stable")
        return every[order, 0], every[order, 1], place[order]

    def _digests(self, number: int) -> np.ndarray:
        if number in self.faults:  # its keys are known all the same, so that asking for one names the shard
            return digests(self.keys_of(number))
        return self._open(number).digests

    def find(self, keys: Sequence[str]) -> np.ndarray:
        """Places of keys, (B,) int64; -1 where a key is not in this cache."""
        wanted = digests(keys)
        found = np.full(len(keys), -1, np.int64)
        index = np.searchsorted(self._heads, wanted[:, 0])
        open_ = np.arange(len(keys))
        while len(open_):  # more than one turn only where two keys share half a digest
            open_ = open_[index[open_] < len(self._heads)]
            open_ = open_[self._heads[index[open_]] == wanted[open_, 0]]
            hit = self._tails[index[open_]] == wanted[open_, 1]
            found[open_[hit]] = self._places[index[open_[hit]]]
            open_ = open_[~hit]
            index[open_] += 1
        return found

    def __getitem__(self, key: str) -> dict[str, Tensor]:
        """Features of one key, each as it was written.

        Raises:
            KeyError: not in this cache.
            ValueError: its shard is damaged.
        """
        place = int(self.find([key])[0])
        if place < 0:
            raise KeyError(key)
        return self._shard(place >> 32).row(place & 0xFFFFFFFF)

    def gather(self, keys: Sequence[str], name: str, picked: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """One feature of several keys, copied out of the files in one go.

        Args:
            keys: What to read; a key may come again.
            name: Of the feature.
            picked: Which rows of each value, (B, P) int; None reads all.
            out: Written to and returned, so that a loop need not find new memory for every batch.

        Returns:
            (B, ...), or (B, P, ...) with `picked`, in the stored dtype.

        Raises:
            KeyError: a key is not in this cache.
            ValueError: no such feature, a shape that differs from key to key, an `out` that does not fit, or a damaged
                shard.
        """
        places = self.find(keys)
        if (places < 0).any():
            raise KeyError(keys[int((places < 0).argmax())])
        if not len(keys):
            raise ValueError("nothing to gather: no key was named")
        numbers, rows = places >> 32, places & 0xFFFFFFFF
        parts = {int(number): self._shard(int(number)).stacked(name) for number in np.unique(numbers)}
        out = _room(list(parts.values()), len(keys), picked, out, name)
        for number, values in parts.items():
            where = np.flatnonzero(numbers == number)
            _copy(values, rows[where], None if picked is None else picked.numpy()[where], out, where)
        return out

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and bool(self.find([key])[0] >= 0)

    def __iter__(self) -> Iterator[str]:
        for number in self.numbers:
            yield from self.keys_of(number)

    def __len__(self) -> int:
        return len(self._places)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Keys that this cache does not hold: each once, in their order; those of damaged shards are among them."""
        unique = list(dict.fromkeys(keys))
        places = self.find(unique)
        lost = np.isin(places >> 32, list(self.faults)) | (places < 0)
        return [unique[index] for index in np.flatnonzero(lost)]

    def keys_of(self, number: int) -> list[str]:
        """Keys of one shard, in their order; known also where the shard itself is damaged."""
        return list(shard_entry(shard_path(self.folder, number))["keys"])

    def check(self) -> dict[str, str]:
        """Compare every shard with its checksum: file name -> what is wrong, for the damaged ones."""
        found = {n: fault(shard_path(self.folder, n), deep=True) for n in self.numbers}
        return {shard_path(self.folder, n).name: what for n, what in found.items() if what}

    def write_parquet(self, path: str | Path) -> None:
        """Write where each key lies (key, shard, row) as a Parquet table for other programs.

        Raises:
            ImportError: pyarrow is missing; it comes with the `train` extra.
        """
        arrow = require("pyarrow", extra="train", purpose="A Parquet index")
        parquet = require("pyarrow.parquet", extra="train", purpose="A Parquet index")
        schema = arrow.schema([("key", arrow.string()), ("shard", arrow.string()), ("row", arrow.int64())])
        with parquet.ParquetWriter(str(path), schema) as writer:
            for number in self.numbers:
                keys = self.keys_of(number)
                shard = [shard_path(self.folder, number).name] * len(keys)
                writer.write_table(arrow.table([keys, shard, list(range(len(keys)))], schema=schema))

    def _shard(self, number: int) -> Shard:
        if number in self.faults:
            raise ValueError(damage(shard_path(self.folder, number), self.faults[number]))
        return self._open(number)

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes: open files stay behind."""
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]


def _room(parts: list[Tensor], count: int, picked: Tensor | None, out: Tensor | None, name: str) -> Tensor:
    """Where the values of `count` keys go."""
    first = parts[0]
    if any(part.shape[1:] != first.shape[1:] or part.dtype != first.dtype for part in parts):
        raise ValueError(f"feature {name!r} differs in shape or dtype from shard to shard; read it key by key")
    shape = (count, *first.shape[1:]) if picked is None else (count, picked.shape[1], *first.shape[2:])
    if out is None:
        return first.new_empty(shape)
    if out.shape != shape or out.dtype != first.dtype or not out.is_contiguous():
        raise ValueError(f"out must be contiguous {first.dtype} {shape}, got {out.dtype} {tuple(out.shape)}")
    return out


def _copy(values: Tensor, rows: np.ndarray, picked: np.ndarray | None, out: Tensor, where: np.ndarray) -> None:
    """out[where] = values[rows], or the picked sub-rows; as whole rows of bytes, which any dtype has."""
    if not out.numel():
        return
    if picked is not None:
        rows = (rows[:, None] * values.shape[1] + picked).ravel()
        where = (where[:, None] * picked.shape[1] + np.arange(picked.shape[1])).ravel()
        values, out = values.flatten(0, 1), out.flatten(0, 1)
    source, target = _bytes(values), _bytes(out)
    if source.shape[1] < LONG_ROW:
        target[where] = source[rows]
        return
    for place, row in zip(where.tolist(), rows.tolist(), strict=True):
        target[place] = source[row]


def _bytes(values: Tensor) -> np.ndarray:
    """The memory of (N, ...) as (N, bytes per row)."""
    return values.reshape(len(values), -1).view(torch.uint8).numpy()


def stored_identity(folder: Path) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """What the features of a folder were computed with, and words about it; None for a folder without features."""
    path = folder / IDENTITY_FILE
    if not path.is_file():
        return None, {}
    data = read_json(path)
    return data["identity"], data.get("about", {})


def refuse_other_identity(
    folder: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any], about: Mapping[str, Any]
) -> None:
    """Compare what features were computed with and what is asked for.

    Raises:
        ValueError: they differ; every difference is named.
    """
    names = [name for name in {**stored, **wanted} if stored.get(name) != wanted.get(name)]
    if names:
        listed = "; ".join(f"{name}: {stored.get(name)!r} there, {wanted.get(name)!r} asked for" for name in names)
        told = ", ".join(f"{name} {value}" for name, value in about.items())
        raise ValueError(
            f"{folder}: these features were computed with something else ({listed})"
            f"{f'; they were made with {told}' if told else ''}; use another folder"
        )
