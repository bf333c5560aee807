"""Lines, arcs and circles in the plane: ends, directions, circles through three points, areas, boxes.

Lengths in millimetres, angles in radians, counter-clockwise positive.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from mm.cad.program import Arc, Circle, Curve, Line, Vec2
from mm.cad.vectors import cross2, distance2, sub2

TURN = 2 * math.pi


class ArcCircle(NamedTuple):
    """The circle of an arc and the part of it."""

    center: Vec2
    radius: float
    start_angle: float
    """Direction from the centre to the start."""
    sweep: float
    """Signed angle from start to end: positive counter-clockwise, -2 pi < sweep < 2 pi."""

    def point(self, share: float) -> Vec2:
        """The point at `share` of the way, 0 = start, 1 = end."""
        angle = self.start_angle + share * self.sweep
        return (self.center[0] + self.radius * math.cos(angle), self.center[1] + self.radius * math.sin(angle))


def arc_circle(arc: Arc) -> ArcCircle | None:
    """The circle through start, mid and end; None if they lie on one line (to 1e-9 of their distance).

    Example:
        >>> found = arc_circle(Arc((1.0, 0.0), (-1.0, 0.0), (0.0, 1.0)))
        >>> found.radius, round(found.sweep, 6)
        (1.0, 3.141593)
    """
    (ax, ay), (bx, by), (cx, cy) = arc.start, arc.mid, arc.end
    ux, uy, vx, vy = bx - ax, by - ay, cx - ax, cy - ay
    area = 2.0 * (ux * vy - uy * vx)
    size = max(abs(ux), abs(uy), abs(vx), abs(vy))
    if abs(area) <= 2e-9 * size * size:
        return None
    uu, vv = ux * ux + uy * uy, vx * vx + vy * vy
    px, py = (vy * uu - uy * vv) / area, (ux * vv - vx * uu) / area  # centre - start
    start, end = math.atan2(-py, -px), math.atan2(vy - py, vx - px)
    sweep = (end - start) % TURN if area > 0 else -((start - end) % TURN)
    return ArcCircle((ax + px, ay + py), math.hypot(px, py), start, sweep)


def start_of(curve: Curve) -> Vec2:
    """First point; that of a circle is its leftmost."""
    if isinstance(curve, Circle):
        return (curve.center[0] - abs(curve.radius), curve.center[1])
    return curve.start


def end_of(curve: Curve) -> Vec2:
    """Last point; that of a circle is its leftmost."""
    return start_of(curve) if isinstance(curve, Circle) else curve.end


def reversed_curve(curve: Curve) -> Curve:
    """The same points in the other direction."""
    if isinstance(curve, Line):
        return Line(curve.end, curve.start)
    if isinstance(curve, Arc):
        return Arc(curve.end, curve.start, curve.mid)
    return curve


def with_ends(curve: Curve, start: Vec2, end: Vec2) -> Curve:
    """A line or an arc with other ends (the arc keeps its point between)."""
    if isinstance(curve, Line):
        return Line(start, end)
    return Arc(start, end, curve.mid) if isinstance(curve, Arc) else curve


def start_direction(curve: Line | Arc) -> Vec2:
    """Direction at the start, not normalised; for an arc the chord to its mid point."""
    return sub2(curve.mid if isinstance(curve, Arc) else curve.end, curve.start)


def end_direction(curve: Line | Arc) -> Vec2:
    """Direction at the end, not normalised; for an arc the chord from its mid point."""
    return sub2(curve.end, curve.mid if isinstance(curve, Arc) else curve.start)


def bounding_box(curve: Curve) -> tuple[Vec2, Vec2]:
    """(smallest, largest) coordinates of the curve."""
    if isinstance(curve, Circle):
        (x, y), r = curve.center, abs(curve.radius)
        return (x - r, y - r), (x + r, y + r)
    points = [curve.start, curve.end]
    if isinstance(curve, Arc):
        points.append(curve.mid)
        points += _extreme_points(curve)
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    return (min(xs), min(ys)), (max(xs), max(ys))


def _extreme_points(arc: Arc) -> list[Vec2]:
    circle = arc_circle(arc)
    if circle is None:
        return []
    low, high = sorted((circle.start_angle, circle.start_angle + circle.sweep))
    quarters = range(math.ceil(low / (math.pi / 2)), math.floor(high / (math.pi / 2)) + 1)
    ways = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))
    (x, y), r = circle.center, circle.radius
    return [(x + r * ways[q % 4][0], y + r * ways[q % 4][1]) for q in quarters]


def loop_box(curves: tuple[Curve, ...]) -> tuple[Vec2, Vec2]:
    """(smallest, largest) coordinates of several curves."""
    boxes = [bounding_box(curve) for curve in curves]
    low = (min(box[0][0] for box in boxes), min(box[0][1] for box in boxes))
    return low, (max(box[1][0] for box in boxes), max(box[1][1] for box in boxes))


def signed_area(curves: tuple[Curve, ...]) -> float:
    """Area inside a chained loop, mm^2; positive if counter-clockwise (a full circle always is).

    Example:
        >>> half = (Arc((1.0, 0.0), (-1.0, 0.0), (0.0, 1.0)), Line((-1.0, 0.0), (1.0, 0.0)))
        >>> round(signed_area(half), 6)
        1.570796
    """
    area = 0.0
    for curve in curves:
        if isinstance(curve, Circle):
            area += math.pi * curve.radius**2
            continue
        area += 0.5 * cross2(curve.start, curve.end)
        circle = arc_circle(curve) if isinstance(curve, Arc) else None
        if circle is not None:
            area += 0.5 * circle.radius**2 * (circle.sweep - math.sin(circle.sweep))
    return area


def polyline(curve: Curve, max_angle: float = math.pi / 16) -> list[Vec2]:
    """Points along the curve, the last one left out (it is the first of the next curve).

    Args:
        curve: Any curve.
        max_angle: Largest angle of a chord of an arc or circle, radians.
    """
    if isinstance(curve, Line):
        return [curve.start]
    if isinstance(curve, Circle):
        circle: ArcCircle | None = ArcCircle(curve.center, abs(curve.radius), math.pi, TURN)
    else:
        circle = arc_circle(curve)
    if circle is None:
        return [curve.start, curve.mid] if isinstance(curve, Arc) else []
    steps = max(2, math.ceil(abs(circle.sweep) / max_angle))
    first = start_of(curve)
    return [first, *(circle.point(i / steps) for i in range(1, steps))]


def length(curve: Curve) -> float:
    """Arc length, mm."""
    if isinstance(curve, Line):
        return distance2(curve.start, curve.end)
    if isinstance(curve, Circle):
        return TURN * abs(curve.radius)
    circle = arc_circle(curve)
    if circle is None:
        return distance2(curve.start, curve.mid) + distance2(curve.mid, curve.end)
    return abs(circle.sweep) * circle.radius
