"""The box around everything a program extrudes, without a CAD kernel."""

from __future__ import annotations

import math

from mm.cad.curves import arc_circle
from mm.cad.planes import Frame, resolve_planes
from mm.cad.program import Arc, Circle, Curve, Line, Program, Vec2, Vec3


def part_box(program: Program) -> tuple[Vec3, Vec3]:
    """(smallest, largest) coordinates over all extrudes, mm.

    Exact for every single extrude; cuts and intersections are not subtracted, so that the box of a part from which
    something is removed may be smaller.

    Example:
        >>> from mm.cad import parse
        >>> from mm.cad.examples import PLATE
        >>> part_box(parse(PLATE))
        ((-31.75, -31.75, 0.0), (31.75, 31.75, 6.35))
    """
    low, high = [math.inf] * 3, [-math.inf] * 3
    for extrude, frame in zip(program.extrudes, resolve_planes(program), strict=True):
        for axis in range(3):
            least, most = sketch_range([c for loop in extrude.loops for c in loop.curves], frame, axis)
            rise = [frame.normal[axis] * height for height in extrude.span]
            low[axis] = min(low[axis], least + min(rise))
            high[axis] = max(high[axis], most + max(rise))
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])


def sketch_range(curves: list[Curve], frame: Frame, axis: int) -> tuple[float, float]:
    """(smallest, largest) world coordinate `axis` of curves on their plane, mm."""
    slope = (frame.x_axis[axis], frame.y_axis[axis])
    values = [value for curve in curves for value in _values(curve, slope)]
    return frame.origin[axis] + min(values), frame.origin[axis] + max(values)


def _values(curve: Curve, slope: Vec2) -> list[float]:
    """Values of slope . point that hold the extremes over the curve."""

    def at(point: Vec2) -> float:
        return slope[0] * point[0] + slope[1] * point[1]

    if isinstance(curve, Circle):
        reach = abs(curve.radius) * math.hypot(*slope)
        return [at(curve.center) - reach, at(curve.center) + reach]
    values = [at(curve.start), at(curve.end)]
    circle = None if isinstance(curve, Line) else arc_circle(curve)
    if circle is not None:
        reach = circle.radius * math.hypot(*slope)
        for sign in (1, -1):  # the points of the circle that lie farthest along the slope, if the arc holds them
            ahead = math.atan2(sign * slope[1], sign * slope[0]) - circle.start_angle
            turn = ahead % (2 * math.pi) if circle.sweep > 0 else -((-ahead) % (2 * math.pi))
            if abs(turn) <= abs(circle.sweep):
                values.append(at(circle.center) + sign * reach)
    elif isinstance(curve, Arc):
        values.append(at(curve.mid))
    return values
