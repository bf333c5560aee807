"""Label maps in numbers: voxels and millilitres of every structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Names = Sequence[str] | Mapping[int, str]


def name_of(names: Names | None, label: int) -> str:
    """Name of a label value.

    Example:
        >>> name_of(("background", "liver"), 1), name_of(None, 7)
        ('liver', 'label 7')
    """
    if isinstance(names, Mapping):
        return names.get(label, f"label {label}")
    return names[label] if names is not None and label < len(names) else f"label {label}"


def label_volumes(labels: NDArray[Any], affine: NDArray[Any], names: Names | None = None) -> list[dict[str, Any]]:
    """Size of every structure that occurs, largest first; 0 is background.

    Args:
        labels: Whole numbers (X, Y, Z).
        affine: Voxel index -> millimetres, (4, 4); its determinant is the volume of a voxel, sheared or not.
        names: Names by value.

    Returns:
        Rows with label, name, voxels and ml.
    """
    voxel_ml = float(abs(np.linalg.det(np.asarray(affine)[:3, :3]))) / 1000.0
    values, counts = np.unique(labels, return_counts=True)
    rows = [
        {"label": int(value), "name": name_of(names, int(value)), "voxels": int(count), "ml": float(count) * voxel_ml}
        for value, count in zip(values, counts, strict=True)
        if value != 0
    ]
    return sorted(rows, key=lambda row: -row["voxels"])
