"""Axis order: from the grid of a file to right-anterior-superior and back, by flips and permutations alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm.extras import require


def _orientations() -> Any:
    return require("nibabel.orientations", extra="medical", purpose="Reading a volume")


def axis_codes(affine: NDArray[Any]) -> str:
    """Where the voxel axes point.

    Example:
        >>> axis_codes(np.diag([-1.0, -1.0, 1.0, 1.0]))
        'LPS'
    """
    return "".join(_orientations().aff2axcodes(affine))


def spacing_of(affine: NDArray[Any]) -> tuple[float, float, float]:
    """Millimetres per step along each voxel axis."""
    x, y, z = (float(length) for length in np.linalg.norm(affine[:3, :3], axis=0))
    return x, y, z


def to_ras(array: NDArray[Any], affine: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Array and affine with axes as close to right, anterior, superior as flips and swaps allow.

    Args:
        array: (X, Y, Z, ...) on the grid of `affine`.
        affine: Voxel index -> RAS millimetres, (4, 4).
    """
    tools = _orientations()
    orientation = tools.io_orientation(affine)
    turned = tools.apply_orientation(array, orientation)
    return np.ascontiguousarray(turned), affine @ tools.inv_ornt_aff(orientation, array.shape[:3])


def from_ras(array: NDArray[Any], native_affine: NDArray[Any]) -> NDArray[Any]:
    """Undo `to_ras` for anything on the turned grid."""
    tools = _orientations()
    ras = np.array([[0, 1], [1, 1], [2, 1]])
    back = tools.ornt_transform(ras, tools.io_orientation(native_affine))
    return np.ascontiguousarray(tools.apply_orientation(array, back))
