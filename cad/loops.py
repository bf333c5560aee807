"""Loops and profiles in one canonical form: chained, closed, counter-clockwise, boundary first.

Steps for a loop of two or more curves:
1. Chain the ends: turn curve 0 round if its start touches curve 1, then every next curve whose end touches the end
   of the one before.
2. Start with the curve whose start has the smallest x, then the smallest y (6 decimals).
3. Turn the whole loop round if it does not turn left at that corner.
4. Close gaps: each curve starts exactly where the one before ends, the last one ends at the first start.

Source: OpenECAD version 2 (steps 1 to 3 as its code). Step 4: the published executor leaves the last gap open.
Deviation: a loop that step 1 cannot chain (order of the curves mixed up, ends only nearly equal) is chained by the
nearest ends; a gap above 1e-3 of the loop's size is an error instead of a crooked edge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from mm.cad.curves import (
    end_direction,
    end_of,
    loop_box,
    polyline,
    reversed_curve,
    signed_area,
    start_direction,
    start_of,
    with_ends,
)
from mm.cad.errors import Notice, ProgramError
from mm.cad.program import Circle, Curve, Extrude, Line, Loop, Vec2
from mm.cad.vectors import cross2, distance2

GAP = 1e-3
"""Largest gap between neighbouring curves that is closed, as a share of the loop's size."""
_SILENT_GAP = 1e-6
"""Gaps below this share are rounding and not worth a notice."""

Chain = list[tuple[Curve, int]]
"""Curves with their index in the written loop."""


@dataclass(frozen=True, slots=True)
class CanonicalLoop:
    """A closed, counter-clockwise loop."""

    curves: tuple[Curve, ...]
    """Each curve starts where the one before ends (exactly); one Circle alone is a loop, too."""
    order: tuple[int, ...]
    """`curves[i]` was curve `order[i]` of the written loop; lines without length are left out."""
    gap: float = 0.0
    """Largest gap that was closed, mm."""


@dataclass(frozen=True, slots=True)
class CanonicalProfile:
    """A planar region: `loops[0]` is the outer boundary, the others are holes; all counter-clockwise."""

    loops: tuple[CanonicalLoop, ...]
    order: tuple[int, ...]
    """`loops[i]` was loop `order[i]` of the written profile."""
    notices: tuple[Notice, ...] = ()


@lru_cache(maxsize=4096)
def canonical_loop(loop: Loop) -> CanonicalLoop:
    """Chain, rotate, orient and close a loop.

    Raises:
        ProgramError: empty-loop, mixed-loop or open-loop.

    Example:
        >>> mixed = Loop((Line((0.0, 4.0), (0.0, 0.0)), Line((3.0, 0.0), (0.0, 0.0)), Line((3.0, 0.0), (0.0, 4.0))))
        >>> canonical_loop(mixed).order
        (1, 2, 0)
    """
    chain: Chain = [(c, i) for i, c in enumerate(loop.curves) if not (isinstance(c, Line) and c.start == c.end)]
    if not chain:
        raise ProgramError("empty-loop", "the loop has no curve with a length")
    circles = sum(isinstance(curve, Circle) for curve, _ in chain)
    if circles and len(chain) > 1:
        raise ProgramError("mixed-loop", "a full circle is a loop of its own; put it into another loop")
    if circles:
        return CanonicalLoop((chain[0][0],), (chain[0][1],))
    allowed = GAP * _size(loop.curves)
    found = arranged(chain)
    if _largest_gap(found) > allowed:
        found = arranged(_chained_by_distance(chain))
    gap = _largest_gap(found)
    if gap:  # the corner of step 2 may lie on either side of a gap; a second round settles it
        found = arranged(found)
    if gap > allowed:
        raise ProgramError(
            "open-loop", f"the curves leave a gap of {gap:.4g} mm; at most {allowed:.4g} mm are closed silently"
        )
    return CanonicalLoop(_closed([curve for curve, _ in found]), tuple(index for _, index in found), gap)


def arranged(chain: Chain) -> Chain:
    """Steps 1 to 3: chain, first corner, direction; no point is moved."""
    if len(chain) < 2:
        return chain
    chain = _rotated(_chained(chain))
    first, last = chain[0][0], chain[-1][0]
    if isinstance(first, Circle) or isinstance(last, Circle):
        return chain
    if cross2(end_direction(last), start_direction(first)) <= 0:
        chain = [(reversed_curve(curve), index) for curve, index in reversed(chain)]
    return chain


def _touch(a: Vec2, b: Vec2) -> bool:
    """Equal to 1e-5 relative (to b) and 1e-8 absolute."""
    return abs(a[0] - b[0]) <= 1e-8 + 1e-5 * abs(b[0]) and abs(a[1] - b[1]) <= 1e-8 + 1e-5 * abs(b[1])


def _chained(chain: Chain, touch: Callable[[Vec2, Vec2], bool] = _touch) -> Chain:
    chain = list(chain)
    (first, index), (second, _) = chain[0], chain[1]
    if touch(start_of(first), start_of(second)) or touch(start_of(first), end_of(second)):
        chain[0] = (reversed_curve(first), index)
    for k in range(1, len(chain)):
        curve, index = chain[k]
        if touch(end_of(chain[k - 1][0]), end_of(curve)):
            chain[k] = (reversed_curve(curve), index)
    return chain


def _chained_by_distance(chain: Chain) -> Chain:
    """Put curves into order by their nearest ends, turning them as needed."""
    found, rest = [chain[0]], list(chain[1:])
    while rest:
        end = end_of(found[-1][0])
        flip, k = min(
            ((flip, k) for k in range(len(rest)) for flip in (False, True)),
            key=lambda pick: distance2(end, (end_of if pick[0] else start_of)(rest[pick[1]][0])),
        )
        curve, index = rest.pop(k)
        found.append((reversed_curve(curve) if flip else curve, index))
    return found


def _rotated(chain: Chain) -> Chain:
    def corner(k: int) -> Vec2:
        x, y = start_of(chain[k][0])
        return (round(x, 6), round(y, 6))

    first = min(range(len(chain)), key=corner)
    return chain[first:] + chain[:first]


def _largest_gap(chain: Chain) -> float:
    return max(distance2(end_of(chain[k - 1][0]), start_of(chain[k][0])) for k in range(len(chain)))


def _closed(curves: list[Curve]) -> tuple[Curve, ...]:
    """Every start moves to the end before it; the last end moves to the first start."""
    if len(curves) == 1:
        return tuple(curves)
    first = start_of(curves[0])
    result, previous = [], first
    for k, curve in enumerate(curves):
        end = first if k == len(curves) - 1 else end_of(curve)
        result.append(with_ends(curve, previous, end))
        previous = end
    return tuple(result)


def _size(curves: tuple[Curve, ...]) -> float:
    low, high = loop_box(curves)
    return max(high[0] - low[0], high[1] - low[1])


# profiles ------------------------------------------------------------------------------------------------------


def sorted_loops(loops: list[tuple[Curve, ...]]) -> list[int]:
    """Order of loops by the smallest corner of their boxes: x, then y (6 decimals)."""

    def corner(k: int) -> Vec2:
        low = loop_box(loops[k])[0]
        return (round(low[0], 6), round(low[1], 6))

    return sorted(range(len(loops)), key=corner)


@lru_cache(maxsize=4096)
def canonical_profile(extrude: Extrude) -> CanonicalProfile:
    """The loops of an extrude in canonical form, boundary first.

    Loops are sorted by the corner of their boxes, whose first is the boundary. Deviation: where another loop holds that
    one and has a larger area, it is the boundary, and a notice says so.

    Raises:
        ProgramError: a loop cannot be closed; see `canonical_loop`.
    """
    loops = [canonical_loop(loop) for loop in extrude.loops]
    order = sorted_loops([loop.curves for loop in loops])
    areas = [abs(signed_area(loop.curves)) for loop in loops]
    notices = [
        Notice("snapped", f"loop {k}: ends up to {loop.gap:.4g} mm apart were joined")
        for k, loop in enumerate(loops)
        if loop.gap > _SILENT_GAP * _size(loop.curves)
    ]
    outer = max(range(len(loops)), key=areas.__getitem__)
    if outer != order[0] and areas[outer] > areas[order[0]] * (1 + 1e-9) and encloses(loops[outer], loops[order[0]]):
        order.remove(outer)
        order.insert(0, outer)
        notices.append(Notice("loop-order", f"loop {outer} holds the others and is taken as the boundary"))
    return CanonicalProfile(tuple(loops[k] for k in order), tuple(order), tuple(notices))


def encloses(outer: CanonicalLoop, inner: CanonicalLoop) -> bool:
    """Whether the box and the first corner of `inner` lie inside `outer` (its border counts as inside)."""
    (low, high), (inner_low, inner_high) = loop_box(outer.curves), loop_box(inner.curves)
    slack = 1e-6 * _size(outer.curves)
    if inner_low[0] < low[0] - slack or inner_low[1] < low[1] - slack:
        return False
    if inner_high[0] > high[0] + slack or inner_high[1] > high[1] + slack:
        return False
    corners = [point for curve in outer.curves for point in polyline(curve)]
    return any(inside(point, corners) for curve in inner.curves for point in polyline(curve))


def inside(point: Vec2, polygon: list[Vec2]) -> bool:
    """Even-odd rule."""
    x, y = point
    odd = False
    for (x1, y1), (x2, y2) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        if (y1 > y) != (y2 > y) and x < x1 + (y - y1) * (x2 - x1) / (y2 - y1):
            odd = not odd
    return odd
