"""How good a set of generated parts is as a set: coverage, distance, distribution, validity, uniqueness, novelty.

Source: DeepCAD section 5.2, after Achlioptas et al. 2018 (arXiv:1707.02392).
Dims: G generated and R reference clouds of P points, in the unit box.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mm.cad.mesh import Floats, Mesh
from mm.cad.metrics.shapes import DEEPCAD_POINTS, chamfer, unit_box

CELLS = 28
"""Cells per side of the occupancy grid."""
SIGNATURE_DIGITS = 4


def clouds(meshes: Sequence[Mesh], points: int = DEEPCAD_POINTS, seed: int = 0) -> list[Floats]:
    """Surface points of every part in the unit box, each (points, 3)."""
    return [unit_box(mesh).sample(points, seed) for mesh in meshes]


def coverage_and_distance(generated: Sequence[Floats], reference: Sequence[Floats]) -> dict[str, float]:
    """`cov`: share of reference parts that are the nearest of some generated one; `mmd`: mean distance of reference
    parts to their nearest generated one.

    Raises:
        ValueError: an empty set.
    """
    if not len(generated) or not len(reference):
        raise ValueError("coverage needs at least one generated and one reference part")
    distance = np.array([[chamfer(a, b) for b in reference] for a in generated])  # (G, R)
    return {"cov": len(set(distance.argmin(axis=1))) / len(reference), "mmd": float(distance.min(axis=0).mean())}


def divergence(generated: Sequence[Floats], reference: Sequence[Floats]) -> float:
    """Jensen-Shannon divergence between the occupancy of both sets on a 28³ grid, 0..1 (bits)."""
    p, q = (_occupancy(points) for points in (generated, reference))
    middle = (p + q) / 2

    def relative(share: Floats) -> float:
        held = share > 0
        return float((share[held] * np.log2(share[held] / middle[held])).sum())

    return (relative(p) + relative(q)) / 2


def _occupancy(points: Sequence[Floats]) -> Floats:
    cells = np.clip((np.concatenate(points) * CELLS).astype(np.int64), 0, CELLS - 1)
    flat = np.bincount(np.ravel_multi_index(tuple(cells.T), (CELLS,) * 3), minlength=CELLS**3)
    return flat / flat.sum()


def signature(mesh: Mesh) -> tuple[float, ...]:
    """Numbers that two equal parts share whatever their programs look like: box, volume, area, centroid, moments."""
    part = unit_box(mesh)
    values = [*np.ptp(part.bounds, axis=0), part.volume, part.area, *part.centroid, *np.linalg.eigvalsh(part.inertia)]
    return tuple(float(f"{value:.{SIGNATURE_DIGITS}g}") for value in values)


def variety(generated: Sequence[Mesh | None], training: Sequence[Mesh] = ()) -> dict[str, float]:
    """`valid`: share that became solids; of these, `unique`: different ones, `novel`: not among the training parts.

    Raises:
        ValueError: an empty set.
    """
    if not len(generated):
        raise ValueError("variety needs at least one generated part")
    known = {signature(mesh) for mesh in training}
    found = [signature(mesh) for mesh in generated if mesh is not None]
    return {
        "valid": len(found) / len(generated),
        "unique": len(set(found)) / max(len(found), 1),
        "novel": sum(one not in known for one in found) / max(len(found), 1),
    }
