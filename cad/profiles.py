"""Outlines of procedural parts: each a function from sizes to curves that turn counter-clockwise from their lowest x.

Every outline fills the box from (0, 0) to (width, height), mm. Whole sizes give whole coordinates, except in `rounded`
and `hexagon`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from mm.cad.program import Arc, Circle, Curve, Line, Loop, Vec2

Outline = Callable[..., Loop]
DIAGONAL = 1 - math.sqrt(0.5)
"""How far the middle of a quarter circle lies from its corner, in radii."""


def polygon(points: list[Vec2]) -> Loop:
    """Straight edges through the points, closed."""
    return Loop(tuple(Line(a, b) for a, b in zip(points, [*points[1:], points[0]], strict=True)))


def rectangle(width: float, height: float) -> Loop:
    """Four edges."""
    return polygon([(0.0, 0.0), (width, 0.0), (width, height), (0.0, height)])


def triangle(width: float, height: float) -> Loop:
    """A right angle at the origin."""
    return polygon([(0.0, 0.0), (width, 0.0), (0.0, height)])


def angle(width: float, height: float, across: float = 3, along: float = 3) -> Loop:
    """An L; its legs are `width / across` and `height / along` thick, rounded to whole millimetres."""
    x, y = _part(width, across), _part(height, along)
    return polygon([(0.0, 0.0), (width, 0.0), (width, y), (x, y), (x, height), (0.0, height)])


def tee(width: float, height: float, across: float = 3, along: float = 3) -> Loop:
    """A T: bar above, `height / along` thick; stem below in the middle, `width / across` from either side."""
    x, y = _part(width, across), height - _part(height, along)
    return polygon(
        [
            (0.0, y),
            (x, y),
            (x, 0.0),
            (width - x, 0.0),
            (width - x, y),
            (width, y),
            (width, height),
            (0.0, height),
        ]
    )


def channel(width: float, height: float, across: float = 4, along: float = 4) -> Loop:
    """A U, open at the top; its walls are `width / across` thick, its bottom `height / along`."""
    x, y = _part(width, across), _part(height, along)
    return polygon(
        [
            (0.0, 0.0),
            (width, 0.0),
            (width, height),
            (width - x, height),
            (width - x, y),
            (x, y),
            (x, height),
            (0.0, height),
        ]
    )


def slot(width: float, height: float) -> Loop:
    """Two parallel edges between half circles; `height` is their diameter and below `width`."""
    r = height / 2
    return Loop(
        (
            Arc((r, height), (r, 0.0), (0.0, r)),
            Line((r, 0.0), (width - r, 0.0)),
            Arc((width - r, 0.0), (width - r, height), (width, r)),
            Line((width - r, height), (r, height)),
        )
    )


def half_round(width: float, height: float) -> Loop:
    """Three edges and a half circle on the right; `height` is its diameter and below twice `width`."""
    r = height / 2
    return Loop(
        (
            Line((0.0, 0.0), (width - r, 0.0)),
            Arc((width - r, 0.0), (width - r, height), (width, r)),
            Line((width - r, height), (0.0, height)),
            Line((0.0, height), (0.0, 0.0)),
        )
    )


def disc(width: float, height: float) -> Loop:
    """A circle of diameter `width`; `height` is ignored."""
    return circle((width / 2, width / 2), width / 2)


def rounded(width: float, height: float) -> Loop:
    """A rectangle with quarter circles at its corners, radius a quarter of the shorter side."""
    r = min(width, height) / 4
    d = r * DIAGONAL
    return Loop(
        (
            Line((0.0, height - r), (0.0, r)),
            Arc((0.0, r), (r, 0.0), (d, d)),
            Line((r, 0.0), (width - r, 0.0)),
            Arc((width - r, 0.0), (width, r), (width - d, d)),
            Line((width, r), (width, height - r)),
            Arc((width, height - r), (width - r, height), (width - d, height - d)),
            Line((width - r, height), (r, height)),
            Arc((r, height), (0.0, height - r), (d, height - d)),
        )
    )


def hexagon(width: float, height: float) -> Loop:
    """A hexagon with two corners on the x direction, stretched to the box."""
    return polygon(
        [
            (0.0, height / 2),
            (width / 4, 0.0),
            (width * 3 / 4, 0.0),
            (width, height / 2),
            (width * 3 / 4, height),
            (width / 4, height),
        ]
    )


def circle(center: Vec2, radius: float) -> Loop:
    """A loop of one circle."""
    curves: tuple[Curve, ...] = (Circle(center, radius),)
    return Loop(curves)


def _part(length: float, share: float) -> float:
    """A part of a length, a whole number of at least 1."""
    return float(max(1, round(length / share)))


OUTLINES: dict[str, Outline] = {
    "plate": rectangle,
    "disc": disc,
    "slot": slot,
    "half_round": half_round,
    "triangle": triangle,
    "angle": angle,
    "tee": tee,
    "channel": channel,
    "rounded": rounded,
    "hexagon": hexagon,
}
"""Family -> outline."""
