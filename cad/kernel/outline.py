"""Loops as polygons: the checks that both kernels share, and the tessellation of the mesh kernel.

A kernel that is given a bow-tie answers with a solid of some volume, or hangs; here it gets no chance.
Curves are plain rows: {"kind": "line", "start", "end"}, {"kind": "arc", "start", "end", "mid"} and
{"kind": "circle", "center", "radius"}. Dims: P points of a polygon.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mm.cad.kernel.status import BuildError
from mm.cad.mesh import Floats

Curve = dict[str, Any]
CLOSING = 1e-3
"""Gaps between curves up to this share of the loop's size are closed; larger ones are errors."""
OVERLAP_MM = 1e-3
"""Overlaps below this (or 1e-4 of the size, if that is less) come from rounding to four decimals and pass."""


def arc_circle(start: Floats, mid: Floats, end: Floats) -> tuple[Floats, float, float, float] | None:
    """The circle through three points as (centre, radius, first angle, sweep); None if they lie on a line.

    The sweep is signed: positive counter-clockwise from `start` over `mid` to `end`, radians.
    """
    a, b = mid - start, end - start
    double = 2 * (a[0] * b[1] - a[1] * b[0])
    if abs(double) <= 1e-12 * (a @ a + b @ b):
        return None
    centre = start + np.array([b[1] * (a @ a) - a[1] * (b @ b), a[0] * (b @ b) - b[0] * (a @ a)]) / double
    angles = [math.atan2(*(point - centre)[::-1]) for point in (start, mid, end)]
    sweep = (angles[2] - angles[0]) % (2 * math.pi)
    if double < 0:  # clockwise
        sweep -= 2 * math.pi
    return centre, float(np.linalg.norm(start - centre)), angles[0], sweep


def snap(loop: Sequence[Curve], feature: int) -> list[Curve]:
    """The curves of a loop with every start equal to the end before it.

    Raises:
        BuildError: `open-loop`: a gap is wider than rounding explains; `bad-arc`: an arc without a circle;
            `zero-area`: a circle without radius.
    """
    if len(loop) == 1 and loop[0]["kind"] == "circle":
        if abs(loop[0]["radius"]) < 1e-9:
            raise BuildError("zero-area", f"circle with radius {loop[0]['radius']}", feature=feature)
        return [loop[0]]
    if not loop or any(curve["kind"] == "circle" for curve in loop):
        raise BuildError("open-loop", "a loop is one circle, or lines and arcs that close", feature=feature)
    ends = np.array([curve["end"] for curve in loop], dtype=np.float64)
    starts = np.array([curve["start"] for curve in loop], dtype=np.float64)
    size = float(np.ptp(np.concatenate([starts, ends]), axis=0).max())
    gaps = np.linalg.norm(starts - np.roll(ends, 1, axis=0), axis=1)
    if gaps.max() > CLOSING * size:
        place = int(gaps.argmax())
        message = f"curve {place} starts {gaps[place]:.4g} mm from the end of the curve before it; close the loop"
        raise BuildError("open-loop", message, feature=feature)
    snapped = []
    for index, curve in enumerate(loop):
        start, end = ends[index - 1], ends[index]
        if np.linalg.norm(end - start) <= 1e-9 * max(size, 1e-12):
            if curve["kind"] == "arc":
                raise BuildError("bad-arc", "an arc ends where it starts; use a circle", feature=feature)
            continue  # a line without length
        snapped.append(_snapped(curve, start, end, feature))
    if len(snapped) < 2:
        raise BuildError("open-loop", "a loop needs a circle or at least two curves", feature=feature)
    return snapped


def _snapped(curve: Curve, start: Floats, end: Floats, feature: int) -> Curve:
    line = {"kind": "line", "start": start, "end": end}
    if curve["kind"] == "line":
        return line
    mid = np.array(curve["mid"], dtype=np.float64)
    if arc_circle(start, mid, end) is not None:
        return {"kind": "arc", "start": start, "end": end, "mid": mid}
    share = (mid - start) @ (end - start) / ((end - start) @ (end - start))
    if not 0 < share < 1:
        raise BuildError("bad-arc", "start, mid and end of an arc lie on a line, mid outside", feature=feature)
    return line  # flat after rounding


def polygon(loop: Sequence[Curve], *, chord: float, angle: float) -> Floats:
    """A snapped loop as a polygon, (P, 2); the closing point is not repeated.

    Args:
        loop: What `snap` returned.
        chord: Largest distance between curve and polygon, mm.
        angle: Largest turn per segment, radians.
    """
    if loop[0]["kind"] == "circle":
        centre, radius = np.array(loop[0]["center"], dtype=np.float64), abs(loop[0]["radius"])
        count = max(8, _segments(radius, 2 * math.pi, chord, angle))
        turns = np.linspace(0, 2 * math.pi, count, endpoint=False)
        return centre + radius * np.stack([np.cos(turns), np.sin(turns)], axis=1)
    points = []
    for curve in loop:
        circle = arc_circle(curve["start"], curve["mid"], curve["end"]) if curve["kind"] == "arc" else None
        if circle is None:
            points.append(curve["start"][None])
            continue
        centre, radius, first, sweep = circle
        turns = first + sweep * np.arange(count := _segments(radius, abs(sweep), chord, angle)) / count
        points.append(centre + radius * np.stack([np.cos(turns), np.sin(turns)], axis=1))
    return np.concatenate(points)


def _segments(radius: float, sweep: float, chord: float, angle: float) -> int:
    by_chord = 2 * math.acos(max(-1.0, 1 - chord / radius)) if chord < 2 * radius else math.pi
    return max(2, math.ceil(sweep / min(by_chord, angle) - 1e-9))


def signed_area(points: Floats) -> float:
    """Area of a polygon, positive counter-clockwise."""
    x, y = (points - points[0]).T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2)


def outer_and_holes(loops: Sequence[Sequence[Curve]], feature: int) -> tuple[list[Curve], list[list[Curve]]]:
    """Check the loops of a profile; the one of largest area comes first, the others are its holes.

    Raises:
        BuildError: `open-loop`, `bad-arc`, `zero-area`, `self-intersecting-loop` or `crossing-loops`.
    """
    if not loops:
        raise BuildError("open-loop", "the profile has no loop", feature=feature)
    snapped = [snap(loop, feature) for loop in loops]
    rough = [polygon(loop, chord=math.inf, angle=math.pi / 24) for loop in snapped]
    size = float(np.ptp(np.concatenate(rough), axis=0).max())
    tolerance = min(OVERLAP_MM, 1e-4 * size)
    for index, points in enumerate(rough):
        if crosses_itself(points, tolerance):
            raise BuildError("self-intersecting-loop", f"loop {index} crosses itself", feature=feature)
        if abs(signed_area(points)) <= 1e-9 * size**2:
            raise BuildError("zero-area", f"loop {index} encloses no area", feature=feature)
    order = sorted(range(len(rough)), key=lambda index: -abs(signed_area(rough[index])))
    for place, one in enumerate(order):
        for other in order[place + 1 :]:
            if _segments_cross(rough[one], rough[other], tolerance).any():
                raise BuildError("crossing-loops", f"loops {one} and {other} cross", feature=feature)
    for hole in order[1:]:
        if not _inside(rough[hole], rough[order[0]]):
            message = f"loop {hole} lies outside the outer loop {order[0]}; make it an extrude of its own"
            raise BuildError("crossing-loops", message, feature=feature)
    return snapped[order[0]], [snapped[index] for index in order[1:]]


def crosses_itself(points: Floats, tolerance: float) -> bool:
    """Whether two sides of a polygon cross, or run back over one another, by more than `tolerance`."""
    count = len(points)
    crossing = _segments_cross(points, points, tolerance)
    index = np.arange(count)
    apart = np.abs(index[:, None] - index[None])
    neighbours = (apart <= 1) | (apart == count - 1)
    if (crossing & ~neighbours).any():
        return True
    side = np.roll(points, -1, axis=0) - points
    unit = side / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-300)
    following = np.roll(unit, -1, axis=0)
    turn = unit[:, 0] * following[:, 1] - unit[:, 1] * following[:, 0]
    return bool(((unit * following).sum(axis=1) < 0).__and__(np.abs(turn) < 1e-6).any())


def _segments_cross(one: Floats, other: Floats, tolerance: float) -> np.ndarray:
    """Which sides of two polygons cross by more than `tolerance` or overlap lengthwise, (P, Q) bool."""
    a, b = one[:, None], np.roll(one, -1, axis=0)[:, None]
    c, d = other[None], np.roll(other, -1, axis=0)[None]
    distance_c, distance_d = _distance(a, b, c), _distance(a, b, d)
    distance_a, distance_b = _distance(c, d, a), _distance(c, d, b)
    both = np.minimum(np.abs(distance_c), np.abs(distance_d)) > tolerance
    both &= np.minimum(np.abs(distance_a), np.abs(distance_b)) > tolerance
    proper = both & (distance_c * distance_d < 0) & (distance_a * distance_b < 0)
    return proper | _overlap(a, b, c, d, tolerance)


def _distance(a: Floats, b: Floats, point: Floats) -> Floats:
    """Signed distance of points from the lines a-b."""
    side, to = b - a, point - a
    length = np.maximum(np.linalg.norm(side, axis=-1), 1e-300)
    return (side[..., 0] * to[..., 1] - side[..., 1] * to[..., 0]) / length


def _overlap(a: Floats, b: Floats, c: Floats, d: Floats, tolerance: float) -> np.ndarray:
    """Whether segments lie on one line (to rounding) and share a piece longer than `tolerance`."""
    side = b - a
    length = np.maximum(np.linalg.norm(side, axis=-1), 1e-300)
    along = [((point - a) * side).sum(axis=-1) / length for point in (c, d)]
    shared = np.minimum(np.maximum(*along), length) - np.maximum(np.minimum(*along), 0)
    flat = np.maximum(np.abs(_distance(a, b, c)), np.abs(_distance(a, b, d))) < 1e-3 * tolerance
    return flat & (shared > tolerance)


def _inside(points: Floats, outer: Floats) -> bool:
    """Whether most points of a polygon lie inside another (which it does not cross)."""
    a, b = outer[None], np.roll(outer, -1, axis=0)[None]
    x, y = points[:, None, 0], points[:, None, 1]
    straddles = (a[..., 1] > y) != (b[..., 1] > y)
    rise = np.where(straddles, b[..., 1] - a[..., 1], 1)
    crossing = straddles & (x < a[..., 0] + (y - a[..., 1]) / rise * (b[..., 0] - a[..., 0]))
    return bool((crossing.sum(axis=1) % 2).mean() > 0.5)
