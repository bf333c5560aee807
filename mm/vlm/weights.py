"""Foreign weight files: all shards of a folder, and key layouts brought to ours by a table of renames."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from mm.checkpoint import WEIGHTS_FILE, read_json, read_tensors

INDEX_FILE = "model.safetensors.index.json"
Renames = Sequence[tuple[str, str]]
"""(regular expression at the start of a key, replacement); the first that fits is applied."""

RECOMPUTED = re.compile(r".*(rotary_emb\.inv_freq|embeddings\.position_ids)$")
"""Buffers that old files hold and newer models compute themselves."""


def read_folder(folder: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors folder, whole or in shards.

    Raises:
        FileNotFoundError: no safetensors file, or a shard of the index is missing.
        ValueError: a file is damaged, or does not hold what the index says.
    """
    if not (folder / INDEX_FILE).is_file():
        return read_tensors(folder / WEIGHTS_FILE)
    index: dict[str, str] = read_json(folder / INDEX_FILE).get("weight_map", {})
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(index.values())):
        if Path(shard).name != shard:
            raise ValueError(f"{folder / INDEX_FILE}: shard {shard!r} is not a plain file name")
        tensors |= read_tensors(folder / shard)
    absent = [key for key in index if key not in tensors]
    if absent:
        raise ValueError(f"{folder / INDEX_FILE} lists {len(absent)} tensors that its shards lack: {absent[:5]}")
    return tensors


def rename(tensors: Mapping[str, Tensor], renames: Renames, *, source: str) -> dict[str, Tensor]:
    """Apply a table of renames; keys that fit no line keep their name, so that strict loading reports them.

    Raises:
        ValueError: two keys of the file end under one name.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if RECOMPUTED.match(key):
            continue
        new = key
        for pattern, replacement in renames:
            new, applied = re.subn(f"^{pattern}", replacement, key)
            if applied:
                break
        if new in renamed:
            raise ValueError(f"{source}: two tensors would both become {new} (the second is {key})")
        renamed[new] = value
    return renamed


def fill_tied(tensors: dict[str, Tensor], module: nn.Module) -> None:
    """Files of tied models hold one name of a shared tensor; add the others where the built model shares them too."""
    present: dict[int, str] = {}
    own = module.state_dict()
    for key, value in own.items():
        if key in tensors:
            present[value.data_ptr()] = key
    for key, value in own.items():
        if key not in tensors and value.data_ptr() in present:
            tensors[key] = tensors[present[value.data_ptr()]]
