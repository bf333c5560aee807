"""Frames as the published code computes them, defects included: only to reproduce data that was released with it.

What is wrong there (names as in `docs/cad.md`):
    D1  phi = arctan(y / (x + 1e-15)): a direction with negative x comes back with x and y negated.
    D2  the sign of y = normal x x_axis is decided by a comparison at 1e-5, which 4-decimal axes fail: y is mirrored.
    D3  gamma = arccos(round(x . x_ref, 6)): turns below 1e-3 rad vanish; vectors are not normalised.

Results need not be right-handed, nor orthonormal.
"""

from __future__ import annotations

import math

from mm.cad.planes import Frame, check_reference, offset, referenced_line
from mm.cad.polar import direction, frame_from_angles, reference_x
from mm.cad.program import AbsolutePlane, Program, RelativePlane, Vec3
from mm.cad.vectors import add, cross, dot, norm, scaled, sub


def resolve_legacy(program: Program) -> tuple[Frame, ...]:
    """The frame of every extrude as the published executor sees it.

    Raises:
        ValueError: a frame is not a number there (an axis that is not a unit vector).
    """
    frames: list[Frame] = []
    for index, extrude in enumerate(program.extrudes):
        check_reference(program, index)
        plane = extrude.plane
        if isinstance(plane, AbsolutePlane):
            frames.append(executed_frame(plane.origin, plane.normal, plane.x_axis))
        else:
            frames.append(_relative(plane, program, frames[plane.extrude]))
    return tuple(frames)


def stored_frame(origin: Vec3, normal: Vec3, x_axis: Vec3, y_axis: Vec3) -> Frame:
    """A frame after it was stored as angles and read back (D1, D3)."""
    theta, phi = _polar(normal)
    reference = reference_x(theta, phi)
    cosine = round(dot(x_axis, reference), 6)
    if not -1.0 <= cosine <= 1.0:
        raise ValueError(f"the published code finds no frame for normal {list(normal)} and x_axis {list(x_axis)} (D3)")
    gamma = math.acos(cosine)
    if dot(cross(reference, x_axis), normal) < 0:
        gamma = -gamma
    stored_normal, stored_x = frame_from_angles(theta, phi, gamma)
    return Frame(origin, stored_normal, stored_x, direction(*_polar(y_axis)))


def executed_frame(origin: Vec3, normal: Vec3, x_axis: Vec3) -> Frame:
    """A frame from a normal and an x axis: y is derived (D2), then all is stored as angles."""
    y_axis = cross(normal, x_axis)
    y_axis = scaled(y_axis, 1.0 / norm(y_axis))
    if not _close(cross(y_axis, normal), x_axis):
        y_axis = scaled(y_axis, -1.0)
    return stored_frame(origin, normal, x_axis, y_axis)


def _polar(vector: Vec3) -> tuple[float, float]:
    x, y, z = (round(part, 6) for part in vector)
    return math.acos(z / norm((x, y, z))), math.atan(y / (x + 1e-15))


def _close(a: Vec3, b: Vec3) -> bool:
    return all(abs(p - q) <= 1e-8 + 1e-5 * abs(q) for p, q in zip(a, b, strict=True))


def _relative(plane: RelativePlane, program: Program, base: Frame) -> Frame:
    extrude = program.extrudes[plane.extrude]
    if plane.kind == "line":
        line = referenced_line(extrude, plane)
        start, along = base.point(line.start), sub(base.point(line.end), base.point(line.start))
        x0 = scaled(along, 1.0 / norm(along))
        a, b = plane.origin
        origin, normal = add(add(start, x0, a), base.normal, b), cross(x0, base.normal)
    else:
        origin, normal, x0 = base.point(plane.origin, offset(plane, extrude)), base.normal, base.x_axis
    x = add(scaled(x0, math.cos(plane.angle)), cross(normal, x0), math.sin(plane.angle))
    return executed_frame(origin, scaled(normal, -1.0) if plane.reverse else normal, x)
