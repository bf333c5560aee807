"""The light kernel: exact boolean operations on meshes (Manifold), with arcs and circles as polygons.

It needs no OpenCASCADE and takes milliseconds; volumes of curved parts are low by about (angle per segment)²/6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mm.cad.kernel.outline import outer_and_holes, polygon
from mm.cad.kernel.recipe import CUT, INTERSECT, Feature, check_span
from mm.cad.kernel.status import BuildError
from mm.cad.mesh import Mesh
from mm.extras import require

MESH_FILE = "mesh.npz"
EMPTY_MM3 = 1e-9
"""A body of less volume is none."""
ANGLE = math.radians(5.0)
"""Default turn per segment: a circle has 72 sides and lacks 0.13 % of its area."""


def preload() -> None:
    """Load the library; the helper process does so once, before it forks."""
    require("manifold3d", extra="cad", purpose="The mesh kernel")


def evaluate(payload: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Task of the isolated process: features -> mesh file and mass properties."""
    mesh = build_mesh(payload["features"], angle=payload.get("angle", ANGLE))
    np.savez(folder / MESH_FILE, vertices=mesh.vertices, triangles=mesh.triangles)
    return properties(mesh)


def properties(mesh: Mesh) -> dict[str, Any]:
    """Mass properties as plain data."""
    return {
        "volume": mesh.volume,
        "area": mesh.area,
        "centroid": mesh.centroid.tolist(),
        "bounds": mesh.bounds.tolist(),
        "is_valid": mesh.is_closed and mesh.volume > 0,
    }


def build_mesh(features: Sequence[Feature], *, angle: float = ANGLE) -> Mesh:
    """Evaluate features in order; the first is the body whatever its operation says.

    Args:
        features: At least one.
        angle: Largest turn per segment of a curve, radians.

    Raises:
        BuildError: a bad profile, no thickness, or an empty result.
        ImportError: Manifold is not installed.
    """
    require("manifold3d", extra="cad", purpose="The mesh kernel")
    if not features:
        raise BuildError("empty-result", "the program has no extrude")
    body, emptied = None, 0
    for index, feature in enumerate(features):
        part, operation = _prism(feature, index, angle), feature["operation"]
        if body is not None:
            body = _combine(body, part, operation)
        elif index == 0 or operation not in (CUT, INTERSECT):
            body = part
        if body is not None and body.volume() < EMPTY_MM3:
            body, emptied = None, index
    if body is None:
        raise BuildError("empty-result", "nothing is left after this operation", feature=emptied)
    return from_manifold(body)


def _combine(body: Any, part: Any, operation: int) -> Any:
    if operation == CUT:
        return body - part
    return body ^ part if operation == INTERSECT else body + part


def _prism(feature: Feature, index: int, angle: float) -> Any:
    from manifold3d import CrossSection, FillRule, Manifold

    check_span(feature["low"], feature["high"], index)
    outer, holes = outer_and_holes(feature["loops"], index)
    # NonZero: the direction in which a loop was written does not matter
    region = CrossSection([polygon(outer, chord=math.inf, angle=angle)], FillRule.NonZero)
    for hole in holes:
        region = region - CrossSection([polygon(hole, chord=math.inf, angle=angle)], FillRule.NonZero)
    solid = Manifold.extrude(region, feature["high"] - feature["low"])
    x, y, n = (np.array(feature[axis], dtype=np.float64) for axis in ("x_axis", "y_axis", "normal"))
    offset = np.array(feature["origin"], dtype=np.float64) + feature["low"] * n
    return solid.transform(np.stack([x, y, n, offset], axis=1))


def from_manifold(solid: Any) -> Mesh:
    """A Manifold as a `Mesh`, in double precision."""
    data = solid.to_mesh64()
    return Mesh(np.array(data.vert_properties[:, :3], dtype=np.float64), np.array(data.tri_verts, dtype=np.int64))


def to_manifold(mesh: Mesh) -> Any:
    """A closed `Mesh` as a Manifold, for boolean operations.

    Raises:
        ValueError: the surface is not closed.
        ImportError: Manifold is not installed.
    """
    manifold3d = require("manifold3d", extra="cad", purpose="Comparing solids")
    data = manifold3d.Mesh64(mesh.vertices, mesh.triangles.astype(np.uint64))
    data.merge()
    solid = manifold3d.Manifold(data)
    if solid.status() != manifold3d.Error.NoError:
        raise ValueError(f"the mesh is not a closed surface ({solid.status().name}); repair it first")
    return solid
