"""How alike two solids are: overlap, and distance between points on their surfaces.

A picture carries no scale, so everything exists twice: as it is, and with both parts scaled to the unit box.
Dims: P, Q points.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
from scipy.spatial import cKDTree

from mm.cad.kernel.manifold import to_manifold
from mm.cad.mesh import Floats, Mesh

DEEPCAD_POINTS = 2000
RECODE_POINTS = 8192
RESCALED_ABOVE = 2.0
"""DeepCAD rescales a generated cloud that reaches further."""


def chamfer(one: Floats, other: Floats) -> float:
    """Mean squared distance to the nearest point, both ways, summed; points (P, 3) and (Q, 3)."""
    there, _ = cKDTree(other).query(one)
    back, _ = cKDTree(one).query(other)
    return float((there**2).mean() + (back**2).mean())


def unit_box(mesh: Mesh) -> Mesh:
    """The part in [0, 1]³: its largest extent is 1, its box is centred."""
    low, high = mesh.bounds
    scale = 1 / max(float((high - low).max()), 1e-300)
    return mesh.moved(scale * np.eye(3), 0.5 - scale * (low + high) / 2)


def deepcad_chamfer(predicted: Mesh, reference: Mesh, seed: int = 0) -> float:
    """Chamfer distance as DeepCAD reports it: 2,000 points, in units of the reference's largest coordinate.

    A predicted cloud that reaches beyond 2 is scaled back to 1, as the published script does.
    """
    size = float(np.abs(reference.vertices).max())
    found, true = (mesh.sample(DEEPCAD_POINTS, seed) / size for mesh in (predicted, reference))
    reach = float(np.abs(found).max())
    return chamfer(found / reach if reach > RESCALED_ABOVE else found, true)


def scaled_chamfer(predicted: Mesh, reference: Mesh, seed: int = 0) -> float:
    """Chamfer distance times 1,000 of both parts in the unit box, 8,192 points each (CAD-Recode, cadrille)."""
    return 1e3 * chamfer(*(unit_box(mesh).sample(RECODE_POINTS, seed) for mesh in (predicted, reference)))


def overlap(one: Mesh, other: Mesh) -> float:
    """Intersection over union of the volumes, 0..1, by exact boolean operations.

    Raises:
        ValueError: a surface is not closed.
        ImportError: Manifold is not installed.
    """
    a, b = to_manifold(one), to_manifold(other)
    shared = (a ^ b).volume()
    return float(shared / max(a.volume() + b.volume() - shared, 1e-300))


def scaled_overlap(one: Mesh, other: Mesh) -> float:
    """`overlap` of both parts in the unit box: scale and place do not count, orientation does."""
    return overlap(unit_box(one), unit_box(other))


def best_overlap(one: Mesh, other: Mesh) -> float:
    """`overlap` after aligning centroids, inertia axes and size; the best choice of axis directions.

    Size is sqrt(trace(inertia) / volume) (CAD-Coder). Parts with equal inertia about two axes have no definite axes:
    their value is a lower bound.
    """
    target = _aligned(other)
    return max(overlap(turned, target) for turned in _choices(_aligned(one)))


def _aligned(mesh: Mesh) -> Mesh:
    """Centroid at 0, principal axes along x, y, z, size 1."""
    _, axes = np.linalg.eigh(mesh.inertia)
    axes = axes * np.where(np.linalg.det(axes) < 0, -1, 1)
    scale = 1 / np.sqrt(np.trace(mesh.inertia) / mesh.volume)
    matrix = scale * axes.T
    return mesh.moved(matrix, -matrix @ mesh.centroid)


def _choices(mesh: Mesh) -> Iterator[Mesh]:
    """The four rotations that turn axes round; reflections would call a part and its mirror image the same."""
    for x, y in product((1.0, -1.0), repeat=2):
        yield mesh.moved(np.diag([x, y, x * y]), np.zeros(3))
