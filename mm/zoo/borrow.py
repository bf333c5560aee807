"""A demonstration on frozen parts ships only what was trained; the rest is borrowed from weights that ship anyway."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from mm.checkpoint import BORROWED_FILE, WEIGHTS_FILE, read_tensors, shipped_folder, write_aside, write_json


def borrow(folder: Path, lenders: Sequence[str]) -> int:
    """Take out of a model folder what equals a tensor of a shipped model bit for bit, and note where it is found.

    Args:
        folder: Model folder; its weights file is replaced, `borrowed.json` is written beside it.
        lenders: Shipped names.

    Returns:
        Bytes that are no longer stored twice.
    """
    own, saved = read_tensors(folder / WEIGHTS_FILE), 0
    borrowed: dict[str, dict[str, str]] = {}
    for lender in lenders:
        held = {digest(value): name for name, value in read_tensors(shipped_folder(lender) / WEIGHTS_FILE).items()}
        found = {key: held[digest(value)] for key, value in own.items() if digest(value) in held}
        saved += sum(own.pop(key).nbytes for key in found)
        borrowed[lender] = found
    with write_aside(folder / BORROWED_FILE) as path:  # first, so that a kill leaves no tensor in neither file
        write_json(path, borrowed)
    with write_aside(folder / WEIGHTS_FILE) as path:
        save_file(own, path, metadata={"format": "pt"})
    return saved


def digest(value: Tensor) -> str:
    """The same for equal type, shape and bits only."""
    head = f"{value.dtype} {tuple(value.shape)} "
    return hashlib.sha256(head.encode() + value.contiguous().numpy().tobytes()).hexdigest()
