"""The authors' store: one pickled tensor per sample, eleven unit rows in a fixed order; read here, never written.

    <root>/multiprompteol-mistral-nemo/<first five characters of the key>/<key>.pth      (11, 5120) float16

Source: published code of FLAME (Cao et al. 2024, arXiv:2411.11927), offline embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

LABELS = (
    ("raw", 0),
    ("short", 0),
    ("short", 1),
    ("short", 2),
    ("long", 0),
    ("long", 1),
    ("long", 2),
    ("long", 3),
    ("long", 4),
    ("long", 5),
    ("long", 6),
)
"""What each row is: (caption, facet). The raw caption goes through the single template, the others through theirs."""


def read_sample(path: str | Path) -> Tensor:
    """The rows of one sample.

    Returns:
        (11, D) unit rows in the stored dtype, in the order of `LABELS`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, holds objects that could run code, or no tensor of eleven rows.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such embedding file")
    try:
        rows = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive and a refused pickle each raise errors of their own
        raise ValueError(f"{path}: not a readable tensor file ({str(error).splitlines()[0]})") from error
    if not isinstance(rows, Tensor) or rows.ndim != 2 or len(rows) != len(LABELS):
        found = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise ValueError(f"{path}: expected a tensor of {len(LABELS)} rows, found {found}")
    return rows


def samples(root: str | Path) -> Iterator[tuple[str, Path]]:
    """(Key, file) of every sample below a folder, by name.

    Raises:
        FileNotFoundError: there is none.
    """
    paths = sorted(Path(root).rglob("*.pth"))
    if not paths:
        raise FileNotFoundError(f"{root}: no .pth files below it")
    return ((path.stem, path) for path in paths)
