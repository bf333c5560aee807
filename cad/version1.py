"""Version 1 of the language: sketches on the 256-level grid of DeepCAD, sized and placed by the sketch statement.

A profile starts at grid point (128, 128); one grid step is sketch_size / 95 (95 = 256 / 2 * 0.75 - 1). The plane lies
at `sketch_position`; the printed `origin` is ignored and the normal is x cross y. Lengths stay in the unit-cube scale
of the text.
"""

from __future__ import annotations

from typing import NamedTuple

from mm.cad.planes import PlaneError, orthonormal
from mm.cad.program import AbsolutePlane, Arc, Circle, Curve, Line, Loop, Vec2, Vec3
from mm.cad.tokens import SyntaxProblem
from mm.cad.vectors import cross

GRID_CENTER = 128.0
"""Grid coordinate of the first point of a profile."""
GRID_REACH = 256 / 2 * 0.75 - 1
"""Grid steps from the first point to the farthest side of a profile: 95."""


class Version1Plane(NamedTuple):
    """Directions of a version 1 plane."""

    x_axis: Vec3
    y_axis: Vec3


def from_grid(
    plane: Version1Plane, loops: tuple[Loop, ...], origin: Vec3, size: float, offset: int
) -> tuple[AbsolutePlane, tuple[Loop, ...]]:
    """Convert a version 1 sketch.

    Raises:
        SyntaxProblem: bad-value for a sketch without size, degenerate-plane for parallel axes.
    """
    if size <= 0:
        raise SyntaxProblem("bad-value", "a sketch of version 1 needs a positive sketch_size", offset)
    normal = cross(plane.x_axis, plane.y_axis)
    try:
        orthonormal(normal, plane.x_axis)
    except PlaneError as error:
        raise SyntaxProblem("degenerate-plane", str(error), offset) from None
    step = size / GRID_REACH
    moved = tuple(Loop(tuple(_from_grid(curve, step) for curve in loop.curves)) for loop in loops)
    return AbsolutePlane(origin, normal, plane.x_axis), moved


def _from_grid(curve: Curve, step: float) -> Curve:
    def local(point: Vec2) -> Vec2:
        return ((point[0] - GRID_CENTER) * step, (point[1] - GRID_CENTER) * step)

    if isinstance(curve, Line):
        return Line(local(curve.start), local(curve.end))
    if isinstance(curve, Arc):
        return Arc(local(curve.start), local(curve.end), local(curve.mid))
    return Circle(local(curve.center), curve.radius * step)
