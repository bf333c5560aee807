"""Where each sketch lies in space: planes resolved to right-handed orthonormal frames.

A plane is absolute (origin, normal, x axis) or follows an earlier extrude with frame (o, x, y, n) and extents e1, e2:

    sameplane    o' = o + a x + b y
    extent_one   o' = o + e1 n + a x + b y
    extent_two   o' = o - e2 n + a x + b y
    line         over the line from S to E: x0 = unit(E - S), n0 = x0 x n (out of the material of an outer loop),
                 o' = S + a x0 + b n

    x' = x (or x0) turned by `angle` about the normal before `reverse`;  n' = -n if reverse;  y' = n' x x'

Extents are signed, whatever the extent type. "The line" is the line after its loop was made canonical.

Source: OpenECAD version 2, semantics of its published executor.
Deviation: exact frames. The executor stores directions as polar angles and loses signs; `frames="legacy"` repeats that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mm.cad.loops import canonical_loop
from mm.cad.program import AbsolutePlane, Extrude, Line, Plane, Program, RelativePlane, Vec2, Vec3
from mm.cad.vectors import add, cross, dot, norm, rotated, scaled, sub

_PARALLEL = 1e-6
"""A normal and an x axis whose angle has a smaller sine count as parallel."""


class PlaneError(ValueError):
    """Directions that span no plane."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A sketch plane in space: unit vectors, right-handed (y = normal x x_axis)."""

    origin: Vec3
    """mm."""
    normal: Vec3
    """The extrude direction for a positive `extent_one`."""
    x_axis: Vec3
    y_axis: Vec3

    def point(self, uv: Vec2, height: float = 0.0) -> Vec3:
        """The point in space at sketch coordinates (u, v), `height` mm along the normal.

        Example:
            >>> Frame((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)).point((2.0, 3.0), 4.0)
            (3.0, 3.0, 4.0)
        """
        u, v = uv
        o, n, x, y = self.origin, self.normal, self.x_axis, self.y_axis
        return (
            o[0] + u * x[0] + v * y[0] + height * n[0],
            o[1] + u * x[1] + v * y[1] + height * n[1],
            o[2] + u * x[2] + v * y[2] + height * n[2],
        )


def orthonormal(normal: Vec3, x_axis: Vec3) -> tuple[Vec3, Vec3, Vec3]:
    """Unit normal, unit x axis perpendicular to it (Gram-Schmidt), and y = normal x x_axis.

    Raises:
        PlaneError: a vector is zero, or both are parallel.
    """
    length, reach = norm(normal), norm(x_axis)
    if length < 1e-12 or reach < 1e-12:
        raise PlaneError(f"normal and x_axis must not be zero, got {list(normal)} and {list(x_axis)}")
    n = scaled(normal, 1.0 / length)
    x = add(x_axis, n, -dot(x_axis, n))
    rest = norm(x)
    if rest < _PARALLEL * reach:
        raise PlaneError(f"x_axis {list(x_axis)} is parallel to the normal {list(normal)}")
    x = scaled(x, 1.0 / rest)
    x = add(x, n, -dot(x, n))  # once more: the first pass loses digits when both are nearly parallel
    x = scaled(x, 1.0 / norm(x))
    return n, x, cross(n, x)


def resolve_planes(program: Program, frames: Literal["exact", "legacy"] = "exact") -> tuple[Frame, ...]:
    """The frame of every extrude, in building order.

    Args:
        program: A program; every plane refers to earlier extrudes only.
        frames: "legacy" repeats the defects of the published executor, to reproduce data that was released with it.

    Raises:
        PlaneError: an absolute plane has no direction.
        ValueError: a reference does not point to an earlier extrude, or not to one of its lines.
    """
    if frames == "legacy":
        from mm.cad.legacy_frames import resolve_legacy

        return resolve_legacy(program)
    if frames != "exact":
        raise ValueError(f'frames must be "exact" or "legacy", got {frames!r}')
    found: list[Frame] = []
    for index, extrude in enumerate(program.extrudes):
        check_reference(program, index)
        found.append(_resolve(extrude.plane, program.extrudes, found))
    return tuple(found)


def check_reference(program: Program, index: int) -> None:
    """Raise ValueError unless the plane of extrude `index` refers to an earlier extrude, and to a line of it."""
    plane = program.extrudes[index].plane
    if isinstance(plane, AbsolutePlane):
        return
    if not 0 <= plane.extrude < index:
        raise ValueError(f"extrude {index} refers to extrude {plane.extrude}; only earlier extrudes can be referenced")
    if plane.kind == "line":
        referenced_line(program.extrudes[plane.extrude], plane)


def _resolve(plane: Plane, extrudes: tuple[Extrude, ...], frames: list[Frame]) -> Frame:
    if isinstance(plane, AbsolutePlane):
        return Frame(plane.origin, *orthonormal(plane.normal, plane.x_axis))
    return relative_frame(plane, extrudes[plane.extrude], frames[plane.extrude])


def relative_frame(plane: RelativePlane, extrude: Extrude, base: Frame) -> Frame:
    """The frame of a plane that follows `extrude`, whose own frame is `base`."""
    if plane.kind == "line":
        line = referenced_line(extrude, plane)
        return side_frame(plane, base.point(line.start), base.point(line.end), base.normal)
    origin = base.point(plane.origin, offset(plane, extrude))
    return turned(origin, base.normal, base.x_axis, plane)


def offset(plane: RelativePlane, extrude: Extrude) -> float:
    """Height of the referenced plane over the sketch plane, mm along the normal."""
    return {"sameplane": 0.0, "extent_one": extrude.extent_one, "extent_two": -extrude.extent_two}[plane.kind]


def referenced_line(extrude: Extrude, plane: RelativePlane) -> Line:
    """The line of a plane of kind "line", with its ends in canonical order.

    Raises:
        ValueError: there is no such curve, or it is no line.
    """
    loop, curve = plane.line if plane.line is not None else (-1, -1)
    if not 0 <= loop < len(extrude.loops) or not 0 <= curve < len(extrude.loops[loop].curves):
        raise ValueError(
            f"extrude {plane.extrude} has no curve {curve} in loop {loop}; a side plane needs a line of it"
        )
    canonical = canonical_loop(extrude.loops[loop])
    if curve not in canonical.order:
        raise ValueError(f"curve {curve} in loop {loop} of extrude {plane.extrude} has no length")
    line = canonical.curves[canonical.order.index(curve)]
    if not isinstance(line, Line):
        raise ValueError(
            f"curve {curve} in loop {loop} of extrude {plane.extrude} is no line; only lines have side planes"
        )
    return line


def side_frame(plane: RelativePlane, start: Vec3, end: Vec3, upward: Vec3) -> Frame:
    """The frame on the side face over the line from `start` to `end` (mm, in space)."""
    along = sub(end, start)
    x0 = scaled(along, 1.0 / norm(along))
    a, b = plane.origin
    return turned(add(add(start, x0, a), upward, b), cross(x0, upward), x0, plane)


def turned(origin: Vec3, normal: Vec3, x_axis: Vec3, plane: RelativePlane) -> Frame:
    """Apply `angle`, then `reverse`."""
    x = rotated(x_axis, normal, plane.angle) if plane.angle else x_axis
    n = scaled(normal, -1.0) if plane.reverse else normal
    return Frame(origin, n, x, cross(n, x))
