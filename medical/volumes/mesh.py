"""Label maps to surfaces in millimetres, by surface nets: one vertex per border cell, one quad per border face.

Source: Gibson 1998, "Constrained elastic surface nets", without the relaxation: vertices are means of edge crossings.
Dims: X Y Z voxels, V vertices, F triangles.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm.extras import require
from mm.medical.volumes.labels import Names, name_of

FORMATS = (".stl", ".ply", ".glb", ".obj")
_CORNERS = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)])


def surface_net(mask: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Closed surface around a mask.

    Args:
        mask: (X, Y, Z), at least one True.

    Returns:
        Vertices (V, 3) in voxel coordinates (voxel centres are whole numbers), triangles (F, 3) facing outwards.

    Raises:
        ValueError: the mask is empty.
    """
    if not mask.any():
        raise ValueError("the mask is empty: there is no surface")
    padded = np.pad(mask, 1)
    cells, place = _vertices(padded)
    quads = np.concatenate([_quads(padded, place, axis) for axis in range(3)])
    triangles = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    return cells - 1.0, triangles


def _vertices(mask: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Vertex of every cell of 2 x 2 x 2 voxels that holds both kinds, and its number per cell (-1: none)."""
    size = [edge - 1 for edge in mask.shape]
    corners = np.stack([mask[x : x + size[0], y : y + size[1], z : z + size[2]] for x, y, z in _CORNERS])
    mixed = corners.any(0) & ~corners.all(0)
    place = np.full(mixed.shape, -1, dtype=np.int64)
    place[mixed] = np.arange(int(mixed.sum()))
    inside = corners[:, mixed]  # (8, V)
    total, count = np.zeros((inside.shape[1], 3)), np.zeros(inside.shape[1])
    for one in range(8):
        for other in range(one + 1, 8):
            if np.abs(_CORNERS[one] - _CORNERS[other]).sum() == 1:
                crossed = inside[one] != inside[other]
                total[crossed] += (_CORNERS[one] + _CORNERS[other]) / 2
                count += crossed
    return np.argwhere(mixed) + total / count[:, None], place


def _quads(mask: NDArray[np.bool_], place: NDArray[np.int64], axis: int) -> NDArray[np.int64]:
    """The four cells around every edge along `axis` that crosses the border, (F, 4)."""
    ahead = np.moveaxis(mask, axis, 0)
    cells = np.moveaxis(place, axis, 0)
    here, there = ahead[:-1, 1:-1, 1:-1], ahead[1:, 1:-1, 1:-1]
    step, u, v = np.nonzero(here != there)
    around = [(0, 0), (1, 0), (1, 1), (0, 1)]
    quads = np.stack([cells[step, u + i, v + j] for i, j in around], axis=1)
    outwards = here[step, u, v]  # the border faces along the axis where this voxel is inside
    flip = outwards if axis == 1 else ~outwards  # (x, z) order of axis 1 is left-handed
    quads[flip] = quads[flip][:, ::-1]
    return quads


def label_meshes(labels: NDArray[Any], affine: NDArray[Any], names: Names | None = None) -> dict[str, Any]:
    """One closed mesh per structure, in the millimetres of the affine.

    Args:
        labels: Whole numbers (X, Y, Z); 0 is background.
        affine: Voxel index -> millimetres, (4, 4).
        names: Names by value.

    Returns:
        Name -> `trimesh.Trimesh`.
    """
    trimesh = require("trimesh", extra="medical", purpose="A mesh")
    matrix = np.asarray(affine, dtype=np.float64)
    found = {}
    for value in np.unique(labels):
        if value == 0:
            continue
        vertices, triangles = surface_net(labels == value)
        if np.linalg.det(matrix[:3, :3]) < 0:  # a mirrored grid turns every face
            triangles = triangles[:, ::-1]
        placed = vertices @ matrix[:3, :3].T + matrix[:3, 3]
        found[name_of(names, int(value))] = trimesh.Trimesh(placed, triangles, process=False)
    return found


def save_mesh(path: Path | str, mesh: Any) -> None:
    """Write a mesh; the ending chooses the format.

    Raises:
        ValueError: unknown ending.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise ValueError(f"a mesh file ends in {', '.join(FORMATS)}, got {Path(path).suffix!r}")
    mesh.export(str(path))
