"""Triangle meshes: the shape in which solids are drawn, measured and compared, whatever kernel made them.

Dims: V vertices, T triangles, E edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FEATURE_ANGLE_DEG = 20.0
"""Neighbouring triangles that turn by more share a feature edge; curved faces are tessellated finer than this."""


@dataclass(frozen=True, eq=False)
class Mesh:
    """A closed surface; triangles turn counter-clockwise seen from outside.

    Args:
        vertices: (V, 3) float64, mm.
        triangles: Vertex indices, (T, 3) int64.
    """

    vertices: Floats
    triangles: Ints

    @cached_property
    def corners(self) -> Floats:
        """Coordinates of the corners of every triangle, (T, 3, 3)."""
        return self.vertices[self.triangles]

    @cached_property
    def cross(self) -> Floats:
        """Outward normals of twice the triangle's area in length, (T, 3)."""
        a, b, c = self.corners[:, 0], self.corners[:, 1], self.corners[:, 2]
        return np.cross(b - a, c - a)

    @cached_property
    def normals(self) -> Floats:
        """Outward unit normals, (T, 3); zero for a triangle without area."""
        length = np.linalg.norm(self.cross, axis=1, keepdims=True)
        return np.divide(self.cross, length, out=np.zeros_like(self.cross), where=length > 0)

    @property
    def area(self) -> float:
        """Surface, mm²."""
        return float(np.linalg.norm(self.cross, axis=1).sum() / 2)

    @property
    def volume(self) -> float:
        """Enclosed volume, mm³ (divergence theorem)."""
        return float(self._signed.sum())

    @cached_property
    def _signed(self) -> Floats:
        """Signed volumes of the tetrahedra from the middle of the box to every triangle, (T,)."""
        return np.einsum("tj,tj->t", self.corners[:, 0] - self.middle, self.cross) / 6

    @cached_property
    def middle(self) -> Floats:
        """Middle of the bounding box, (3,); sums run from here, so that a part far from the origin loses no digits."""
        return self.bounds.mean(axis=0) if len(self.vertices) else np.zeros(3)

    @property
    def centroid(self) -> Floats:
        """Centre of mass, (3,) mm."""
        moments = (self.corners.sum(axis=1) - 3 * self.middle) / 4 * self._signed[:, None]
        return self.middle + moments.sum(axis=0) / self._signed.sum()

    @property
    def inertia(self) -> Floats:
        """Inertia tensor about the centroid for density 1, (3, 3) mm⁵."""
        second = self._second_moments(self.centroid)
        return np.trace(second) * np.eye(3) - second

    def _second_moments(self, origin: Floats) -> Floats:
        """Integral of x xᵀ over the body; exact for the tetrahedra from `origin`."""
        p = self.corners - origin
        signed = np.einsum("tj,tj->t", p[:, 0], self.cross) / 6
        total = p.sum(axis=1)
        outer = np.einsum("tki,tkj->tij", p, p) + np.einsum("ti,tj->tij", total, total)
        return np.einsum("t,tij->ij", signed, outer) / 20

    @cached_property
    def bounds(self) -> Floats:
        """Lowest and highest coordinates, (2, 3) mm."""
        return np.stack([self.vertices.min(axis=0), self.vertices.max(axis=0)])

    @property
    def size(self) -> float:
        """Diagonal of the bounding box, mm."""
        return float(np.linalg.norm(self.bounds[1] - self.bounds[0]))

    @cached_property
    def edges(self) -> tuple[Ints, Ints]:
        """Edges and their two triangles: vertex indices (E, 2) ascending, triangle indices (E, 2).

        An edge of an open surface has -1 as its second triangle.
        """
        pairs = np.sort(self.triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
        owner = np.repeat(np.arange(len(self.triangles)), 3)
        order = np.lexsort((owner, pairs[:, 1], pairs[:, 0]))
        pairs, owner = pairs[order], owner[order]
        first = np.ones(len(pairs), dtype=bool)
        first[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
        start = np.flatnonzero(first)
        following = np.minimum(start + 1, len(pairs) - 1)
        has_second = (start + 1 < len(pairs)) & ~first[following]
        second = np.where(has_second, owner[following], -1)
        return pairs[start], np.stack([owner[start], second], axis=1)

    @property
    def is_closed(self) -> bool:
        """Whether every edge joins an even number of triangles."""
        pairs = np.sort(self.triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
        _, counts = np.unique(pairs, axis=0, return_counts=True)
        return bool(len(self.triangles) and (counts % 2 == 0).all())

    def feature_edges(self, angle_deg: float = FEATURE_ANGLE_DEG) -> Ints:
        """Indices into `edges` where the surface turns by more than `angle_deg`, or ends."""
        _, sides = self.edges
        cosine = np.einsum("ej,ej->e", self.normals[sides[:, 0]], self.normals[sides[:, 1]])
        return np.flatnonzero((sides[:, 1] < 0) | (cosine < np.cos(np.radians(angle_deg))))

    def sample(self, count: int, seed: int = 0) -> Floats:
        """Points spread evenly over the surface, (count, 3)."""
        generator = np.random.default_rng(seed)
        weights = np.linalg.norm(self.cross, axis=1)
        picked = generator.choice(len(weights), size=count, p=weights / weights.sum())
        u, v = generator.random((2, count, 1))
        root = np.sqrt(u)
        a, b, c = self.corners[picked, 0], self.corners[picked, 1], self.corners[picked, 2]
        return (1 - root) * a + root * (1 - v) * b + root * v * c

    def moved(self, matrix: Floats, offset: Floats) -> Mesh:
        """Every vertex x becomes `matrix` x + `offset`; a mirroring matrix keeps the triangles facing outwards."""
        flip = np.linalg.det(matrix) < 0
        return Mesh(self.vertices @ matrix.T + offset, self.triangles[:, ::-1] if flip else self.triangles)


def weld(vertices: Floats, triangles: Ints, tolerance: float) -> Mesh:
    """Join vertices that agree after rounding to `tolerance`, and drop triangles that collapse."""
    keys = np.round(vertices / tolerance).astype(np.int64)
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    joined = inverse.reshape(-1)[triangles]
    a, b, c = joined.T
    return Mesh(vertices[first], joined[(a != b) & (b != c) & (c != a)])


def join(meshes: list[Mesh]) -> Mesh:
    """Several surfaces as one."""
    offsets = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes[:-1])])
    return Mesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate([mesh.triangles + offset for mesh, offset in zip(meshes, offsets, strict=True)]),
    )
