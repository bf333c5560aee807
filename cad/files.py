"""CAD programs in files: DeepCAD JSON and h5, OpenECAD text of either version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mm.cad.deepcad import References, from_deepcad, to_deepcad
from mm.cad.limits import MAX_BYTES
from mm.cad.parser import parse
from mm.cad.program import Program
from mm.extras import require

_MAX_FILE = 64 * 1024 * 1024
"""Larger files are no parts."""


def load_program(path: str | Path, *, references: References = "official", frames: Any = "exact") -> Program:
    """Read a program from a file; the ending says what it is.

    Args:
        path: `.json` (DeepCAD document or rows of a vector), `.h5` (DeepCAD vector `vec`), else OpenECAD text.
        references, frames: For DeepCAD data, as in `from_deepcad`.

    Raises:
        ValueError: the file does not hold a program; the message names the file.
        FileNotFoundError: there is no such file.
        ImportError: an h5 file without h5py.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > _MAX_FILE:
        raise ValueError(f"{path}: {size} bytes are too many for a part (at most {_MAX_FILE})")
    try:
        if path.suffix == ".json":
            return from_deepcad(json.loads(path.read_text(encoding="utf-8")), references, frames)
        if path.suffix in (".h5", ".hdf5"):
            return from_deepcad(read_h5(path), references, frames)
        with path.open("rb") as file:
            return parse(file.read(MAX_BYTES + 1).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error


def read_h5(path: Path) -> Any:
    """The rows of the data set `vec`."""
    h5py = require("h5py", extra="cad", purpose="Reading an h5 file")
    try:
        with h5py.File(path, "r") as file:
            if "vec" not in file or not isinstance(file["vec"], h5py.Dataset):
                raise ValueError("the file has no data set 'vec'")
            if file["vec"].size > 1 << 20:
                raise ValueError("'vec' is too large for a part")
            return file["vec"][()]
    except OSError as error:
        raise ValueError(f"no readable h5 file ({error})") from error


def write_h5(path: Path, program: Program) -> None:
    """Write the vector of a program as data set `vec`."""
    h5py = require("h5py", extra="cad", purpose="Writing an h5 file")
    rows = to_deepcad(program, "vector")
    with h5py.File(path, "w") as file:
        file["vec"] = rows
