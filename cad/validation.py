"""Does a program describe a part? Everything that can be judged without a CAD kernel, as a list of findings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from mm.cad.commands import EXTENT_TYPES, OPERATIONS, PLANE_KINDS
from mm.cad.curves import arc_circle, polyline, signed_area
from mm.cad.errors import Notice, ProgramError
from mm.cad.limits import MAX_CURVES, MAX_EXTRUDES, MAX_VALUE
from mm.cad.loops import CanonicalLoop, canonical_loop, canonical_profile, encloses
from mm.cad.parser import parse
from mm.cad.planes import PlaneError, check_reference, orthonormal
from mm.cad.program import AbsolutePlane, Arc, Circle, Curve, Extrude, Program, Vec2
from mm.cad.vectors import cross2, sub2

_FLAT = 1e-9
"""Area below this share of the squared length of the loop counts as none."""
_MAX_SEGMENTS = 4000
"""Longer outlines are not searched for self-intersections."""


def validate(program: Program | str) -> tuple[Notice, ...]:
    """Findings about a program; it can be built when none has the severity "error".

    Args:
        program: A program, or a text, whose parse error then is the only finding.

    Example:
        >>> from mm.cad import parse
        >>> from mm.cad.examples import PLATE
        >>> validate(parse(PLATE))
        ()
        >>> [finding.code for finding in validate("a = add_box()")]
        ['unknown-function']
    """
    if isinstance(program, str):
        try:
            program = parse(program)
        except ProgramError as error:
            return (Notice(error.code, error.message, error.line, error.column, "error"),)
    return tuple(program.notices) + tuple(_findings(program))


def _findings(program: Program) -> Iterator[Notice]:
    if not program.extrudes:
        yield Notice("no-extrude", "the program builds nothing", severity="error")
    if len(program.extrudes) > MAX_EXTRUDES or sum(1 for _ in program.curves()) > MAX_CURVES:
        yield Notice(
            "too-many", f"at most {MAX_EXTRUDES} extrudes and {MAX_CURVES} curves are allowed", severity="error"
        )
    for index, extrude in enumerate(program.extrudes):
        for finding in _extrude(program, index, extrude):
            yield replace(finding, extrude=index, message=f"extrude {index}: {finding.message}")


def _error(code: str, message: str) -> Notice:
    return Notice(code, message, severity="error")


def _extrude(program: Program, index: int, extrude: Extrude) -> Iterator[Notice]:
    if not all(-MAX_VALUE <= value <= MAX_VALUE for value in _numbers(extrude)):
        finite = all(math.isfinite(value) for value in _numbers(extrude))
        yield _error("out-of-range" if finite else "non-finite", f"numbers must be finite and at most {MAX_VALUE:g}")
        return
    if extrude.operation not in OPERATIONS or extrude.extent_type not in EXTENT_TYPES:
        yield _error("bad-value", f"operation {extrude.operation} or extent type {extrude.extent_type} is unknown")
        return
    if extrude.span[0] == extrude.span[1]:
        yield _error("zero-extent", "it has no height")
    yield from _plane(program, index, extrude)
    yield from _profile(extrude)


def _numbers(extrude: Extrude) -> Iterator[float]:
    yield from (extrude.extent_one, extrude.extent_two)
    plane = extrude.plane
    if isinstance(plane, AbsolutePlane):
        yield from (*plane.origin, *plane.normal, *plane.x_axis)
    else:
        yield from (*plane.origin, plane.angle)
    for loop in extrude.loops:
        for curve in loop.curves:
            for field in curve.__slots__:
                value = getattr(curve, field)
                yield from value if isinstance(value, tuple) else (value,)


def _plane(program: Program, index: int, extrude: Extrude) -> Iterator[Notice]:
    plane = extrude.plane
    try:
        if isinstance(plane, AbsolutePlane):
            orthonormal(plane.normal, plane.x_axis)
        elif plane.kind not in PLANE_KINDS:
            yield _error("bad-value", f"plane type {plane.kind} is unknown")
        else:
            check_reference(program, index)
    except PlaneError as error:
        yield _error("degenerate-plane", str(error))
    except ProgramError as error:
        yield _error(error.code, f"the referenced loop: {error.message}")
    except ValueError as error:
        yield _error("foreign-line" if getattr(plane, "kind", "") == "line" else "use-before-def", str(error))


def _profile(extrude: Extrude) -> Iterator[Notice]:
    if not extrude.loops:
        yield _error("empty-profile", "its profile has no loop")
    sound = True
    for number, loop in enumerate(extrude.loops):
        for finding in _loop(loop.curves, extrude, number):
            sound = False
            yield finding
    if not sound or not extrude.loops:
        return
    profile = canonical_profile(extrude)
    yield from profile.notices
    outer, *holes = profile.loops
    for hole, number in zip(holes, profile.order[1:], strict=True):
        if not encloses(outer, hole):
            yield _error("loop-outside", f"loop {number} is not inside the boundary, loop {profile.order[0]}")
    yield from _crossings(profile.loops, profile.order)


def _loop(curves: tuple[Curve, ...], extrude: Extrude, number: int) -> Iterator[Notice]:
    for k, curve in enumerate(curves):
        if isinstance(curve, Arc) and (curve.start == curve.end or arc_circle(curve) is None):
            yield _error("degenerate-curve", f"loop {number}, curve {k}: start, mid and end of the arc are on a line")
            return
        if isinstance(curve, Circle) and curve.radius == 0:
            yield _error("degenerate-curve", f"loop {number}, curve {k}: the circle has no radius")
            return
    try:
        loop = canonical_loop(extrude.loops[number])
    except ProgramError as error:
        yield _error(error.code, f"loop {number}: {error.message}")
        return
    around = sum(math.hypot(*sub2(b, a)) for a, b in _segments(loop))
    if abs(signed_area(loop.curves)) <= _FLAT * around * around:
        yield _error("flat-loop", f"loop {number} encloses no area")


def _segments(loop: CanonicalLoop) -> list[tuple[Vec2, Vec2]]:
    points = [point for curve in loop.curves for point in polyline(curve)]
    return list(zip(points, [*points[1:], points[0]], strict=True))


def _crossings(loops: tuple[CanonicalLoop, ...], order: tuple[int, ...]) -> Iterator[Notice]:
    """Segments of the outlines (arcs as chords) that cross in their inside; the first one is reported."""
    segments = [(a, b, number) for loop, number in zip(loops, order, strict=True) for a, b in _segments(loop)]
    if len(segments) > _MAX_SEGMENTS:
        return
    segments.sort(key=lambda s: min(s[0][0], s[1][0]))
    active: list[tuple[Vec2, Vec2, int]] = []
    for a, b, number in segments:
        left = min(a[0], b[0])
        active = [other for other in active if max(other[0][0], other[1][0]) >= left]
        for c, d, other in active:
            if _cross(a, b, c, d):
                where = f"near ({(a[0] + b[0]) / 2:.4g}, {(a[1] + b[1]) / 2:.4g})"
                both = f"loop {number} crosses itself" if other == number else f"loops {other} and {number} cross"
                yield _error("self-intersecting", f"{both} {where}")
                return
        active.append((a, b, number))


def _cross(a: Vec2, b: Vec2, c: Vec2, d: Vec2) -> bool:
    """Whether two segments cross in their inside (touching ends do not count)."""
    if min(c[1], d[1]) > max(a[1], b[1]) or max(c[1], d[1]) < min(a[1], b[1]):
        return False
    ab, cd = sub2(b, a), sub2(d, c)
    slack = 1e-9 * max(abs(ab[0]), abs(ab[1])) * max(abs(cd[0]), abs(cd[1]))
    sides = (cross2(ab, sub2(c, a)), cross2(ab, sub2(d, a)), cross2(cd, sub2(a, c)), cross2(cd, sub2(b, c)))
    p, q, r, s = (0.0 if abs(side) <= slack else side for side in sides)
    return p * q < 0 and r * s < 0
