"""What an edit moves: the extrudes of two versions of a program, compared in space."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mm.cad.planes import Frame, resolve_planes
from mm.cad.program import Program, Vec3
from mm.cad.vectors import norm, sub

_SAME = 1e-9


@dataclass(frozen=True, slots=True)
class Moved:
    """An extrude that is not where, or what, it was."""

    extrude: str
    """Its name before the edit."""
    shift: Vec3
    """Way of its sketch origin, mm."""
    turn: float
    """Largest angle between old and new axes, radians."""
    reshaped: bool
    """Its own profile, extents or kind changed."""


def moved_between(
    before: Program, after: Program, names: Sequence[str], origin: Mapping[int, int | None] | None = None
) -> tuple[Moved, ...]:
    """Compare two versions.

    Args:
        before, after: The versions.
        names: Names of the extrudes of `before`.
        origin: New index -> old index (None = new); by default equal.
    """
    old_frames, new_frames = resolve_planes(before), resolve_planes(after)
    found = []
    for new in range(len(after.extrudes)):
        old = new if origin is None else origin.get(new)
        if old is None:
            continue
        a, b = before.extrudes[old], after.extrudes[new]
        shift = sub(new_frames[new].origin, old_frames[old].origin)
        turn = _turn(old_frames[old], new_frames[new])
        kinds = [(e.loops, e.operation, e.extent_type, e.extent_one, e.extent_two) for e in (a, b)]
        reshaped = kinds[0] != kinds[1]
        if reshaped or norm(shift) > _SAME or turn > _SAME:
            found.append(Moved(names[old], shift, turn, reshaped))
    return tuple(found)


def _turn(a: Frame, b: Frame) -> float:
    pairs = ((a.normal, b.normal), (a.x_axis, b.x_axis))
    return max(2 * math.asin(min(1.0, norm(sub(p, q)) / 2)) for p, q in pairs)
