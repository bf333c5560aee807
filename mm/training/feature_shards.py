"""One file of the feature cache: features of many keys as few large tensors, memory-mapped when read.

`features-000003.safetensors` holds, for every feature, all values of the shard: stacked (N, ...) where the keys agree
in shape, else flat with a table of shapes. `features-000003.json` beside it names the keys, the size and the checksum;
it is written last, so a shard that has one was complete. What is missing or cut off later is found by its size.
Dims: N keys of the shard.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mm.checkpoint import read_json, write_aside, write_json

DIGESTS = "digests"
VALUES, SHAPES = "/values", "/shapes"
_NAME = re.compile(r"features-(\d{6,})\.json")


def digest(key: str) -> bytes:
    """16 bytes that stand for a key (BLAKE2b); equal keys, and only they, have equal digests.

    Example:
        >>> digest("a cat").hex()[:8], len(digest("a cat"))
        ('6eda1d6f', 16)
    """
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def digests(keys: Sequence[str]) -> np.ndarray:
    """Digests of several keys, (N, 2) uint64: both halves, comparable with what the shards hold."""
    joined = b"".join(map(digest, keys))
    return np.frombuffer(joined, dtype="<u8").reshape(-1, 2)


def shard_path(folder: Path, number: int) -> Path:
    """Where shard `number` lies."""
    return folder / f"features-{number:06d}.safetensors"


def shard_numbers(folder: Path) -> list[int]:
    """Numbers of all shards that were completed in `folder`, ascending."""
    found = (_NAME.fullmatch(path.name) for path in folder.glob("features-*.json"))
    return sorted(int(match[1]) for match in found if match)


def write_shard(folder: Path, number: int, rows: Mapping[str, Mapping[str, Tensor]]) -> Path:
    """Write the features of some keys, whole or not at all.

    Args:
        folder: The cache.
        number: Of the shard; what has that number is replaced.
        rows: Key -> feature name -> value; every key has the same features, shapes may differ.

    Returns:
        The file.

    Raises:
        ValueError: two keys have different features.
    """
    path = shard_path(folder, number)
    for stale in folder.glob(f".{path.stem}.*"):  # what a killed process has left of this very shard
        shutil.rmtree(stale, ignore_errors=True)
    tensors = {DIGESTS: torch.from_numpy(digests(list(rows)).view(np.uint8).copy())}
    names = list(next(iter(rows.values())))
    for key, row in rows.items():
        if set(row) != set(names):
            raise ValueError(f"key {key!r} has the features {', '.join(row)}, others have {', '.join(names)}")
    for name in names:
        tensors |= _packed(name, [row[name] for row in rows.values()])
    with write_aside(path) as temporary:
        save_file(tensors, temporary)
        entry = {"keys": list(rows), "bytes": temporary.stat().st_size, "sha256": sha256(temporary)}
    with write_aside(path.with_suffix(".json")) as temporary:
        write_json(temporary, entry)
    return path


def _packed(name: str, values: Sequence[Tensor]) -> dict[str, Tensor]:
    """Tensors that hold one feature of all keys."""
    if len({value.dtype for value in values}) > 1:
        raise ValueError(f"feature {name!r} comes in several dtypes: {sorted({str(value.dtype) for value in values})}")
    if len({value.shape for value in values}) == 1:
        return {name + VALUES: torch.stack(list(values))}
    if len({value.ndim for value in values}) > 1:
        raise ValueError(f"feature {name!r} has a different number of axes from key to key")
    shapes = torch.tensor([value.shape for value in values], dtype=torch.int64)
    return {name + VALUES: torch.cat([value.flatten() for value in values]), name + SHAPES: shapes}


def sha256(path: Path) -> str:
    """Checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Shard:
    """One open shard; its values stay in the file until they are used.

    Args:
        path: The safetensors file.

    Raises:
        ValueError: it is missing, cut off or no shard; the message says how to mend it.
    """

    def __init__(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except Exception as error:  # safetensors raises its own untyped errors for every kind of damage
            raise ValueError(damage(path, str(error))) from error
        if DIGESTS not in tensors:
            raise ValueError(damage(path, "it holds no keys"))
        self.path = path
        self.digests = tensors.pop(DIGESTS).numpy().view("<u8").reshape(-1, 2)
        self.values = {name.removesuffix(VALUES): value for name, value in tensors.items() if name.endswith(VALUES)}
        self.shapes = {name.removesuffix(SHAPES): value for name, value in tensors.items() if name.endswith(SHAPES)}
        sizes = {name: shapes.prod(dim=1).cumsum(0).tolist() for name, shapes in self.shapes.items()}
        self._ends = {name: [0, *ends] for name, ends in sizes.items()}

    def row(self, row: int) -> dict[str, Tensor]:
        """Features of the key with number `row`."""
        return {name: self._value(name, row) for name in self.values}

    def _value(self, name: str, row: int) -> Tensor:
        if name not in self.shapes:
            return self.values[name][row]
        start, end = self._ends[name][row : row + 2]
        return self.values[name][start:end].view(self.shapes[name][row].tolist())

    def stacked(self, name: str) -> Tensor:
        """All values of a feature, (N, ...).

        Raises:
            ValueError: no such feature, or its shape differs from key to key.
        """
        if name not in self.values:
            raise ValueError(f"{self.path}: no feature {name!r}; it holds {', '.join(self.values)}")
        if name in self.shapes:
            raise ValueError(f"{self.path}: feature {name!r} differs in shape from key to key; read it key by key")
        return self.values[name]


def damage(path: Path, what: str) -> str:
    """Sentence about a shard that can't be used."""
    return (
        f"{path}: damaged shard ({what}); run the command that wrote this folder again: only the damaged shards are "
        "computed anew"
    )


def fault(path: Path, *, deep: bool = False) -> str | None:
    """What is wrong with a shard that was complete once; None if nothing is.

    Args:
        path: The safetensors file.
        deep: Compare the checksum, too; reads the whole file.
    """
    entry = shard_entry(path)
    if not path.is_file():
        return "the file is missing"
    size = path.stat().st_size
    if size != entry["bytes"]:
        return f"{size:,} of {entry['bytes']:,} bytes"
    if deep and sha256(path) != entry["sha256"]:
        return "the checksum differs"
    return None


def shard_entry(path: Path) -> dict[str, Any]:
    """Keys, size and checksum of a shard, from the file beside it."""
    return read_json(path.with_suffix(".json"))
