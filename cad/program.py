"""A CAD program as data: extrudes of sketched profiles, in the words of OpenECAD.

    Program -> Extrude -> plane (AbsolutePlane | RelativePlane)
                       -> Loop -> Line | Arc | Circle

Every length is in millimetres, every angle in radians. Sketch points are (u, v) on the sketch plane. The numbers are
those of the text, unchanged: nothing here is rounded, normalised or re-ordered (`mm.cad.loops` and `mm.cad.planes` do
that). All classes are immutable; two programs are equal when they say the same, whatever the text looked like.

Source: OpenECAD (Yuan et al., Computers & Graphics 2024, arXiv:2406.09913), language of version 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mm.cad.errors import Notice
    from mm.cad.source import Source

Vec2 = tuple[float, float]
"""A point or a vector on a sketch plane, mm."""
Vec3 = tuple[float, float, float]
"""A point (mm) or a direction (no unit) in space."""
PlaneKind = Literal["sameplane", "extent_one", "extent_two", "line"]


class Operation(IntEnum):
    """How an extrude meets the body made so far. The first extrude is the body, whatever its operation says."""

    NEW_BODY = 0
    JOIN = 1
    CUT = 2
    INTERSECT = 3


class ExtentType(IntEnum):
    """Which sides of its plane an extrude grows to."""

    ONE_SIDE = 0
    SYMMETRIC = 1
    TWO_SIDES = 2


@dataclass(frozen=True, slots=True)
class Line:
    """A straight edge."""

    start: Vec2
    end: Vec2


@dataclass(frozen=True, slots=True)
class Arc:
    """A circular arc from `start` to `end` that passes through `mid` (any point between, not always the middle)."""

    start: Vec2
    end: Vec2
    mid: Vec2


@dataclass(frozen=True, slots=True)
class Circle:
    """A full circle."""

    center: Vec2
    radius: float
    """mm; the sign has no meaning, `abs(radius)` is the radius."""


Curve = Line | Arc | Circle


@dataclass(frozen=True, slots=True)
class Loop:
    """A closed chain of curves, as written: ends may be swapped and any curve may come first."""

    curves: tuple[Curve, ...]


@dataclass(frozen=True, slots=True)
class AbsolutePlane:
    """A sketch plane in space. `normal` and `x_axis` as written: any length, only roughly perpendicular."""

    origin: Vec3
    normal: Vec3
    x_axis: Vec3


@dataclass(frozen=True, slots=True)
class RelativePlane:
    """A sketch plane that follows an earlier extrude."""

    extrude: int
    """Index of that extrude in `Program.extrudes`; smaller than the index of the extrude that uses this plane."""
    origin: Vec2
    """(a, b): offset in the referenced frame, mm."""
    kind: PlaneKind
    line: tuple[int, int] | None = None
    """For kind "line": (loop, curve) indices in the referenced extrude, in the order of the text."""
    reverse: bool = False
    """Turn the normal round (last of all)."""
    angle: float = 0.0
    """Rotation of the x axis about the normal before `reverse`, radians."""


Plane = AbsolutePlane | RelativePlane


@dataclass(frozen=True, slots=True)
class Extrude:
    """One feature: a profile, pulled out of its plane."""

    plane: Plane
    loops: tuple[Loop, ...]
    """Boundary and holes in the order of the text."""
    operation: int
    """An `Operation`."""
    extent_type: int
    """An `ExtentType`."""
    extent_one: float
    """Signed length along the normal, mm."""
    extent_two: float = 0.0
    """Signed length against the normal, mm; only read for two sides."""

    @property
    def span(self) -> tuple[float, float]:
        """(low, high) along the normal, mm: the union of both sides, which always holds the sketch plane (0).

        A symmetric extrude grows by the full `extent_one` on each side.

        Example:
            >>> plane = AbsolutePlane((0, 0, 0), (0, 0, 1), (1, 0, 0))
            >>> Extrude(plane, (), Operation.NEW_BODY, ExtentType.TWO_SIDES, -20.0, 20.0).span
            (-20.0, 0.0)
        """
        one, two = self.extent_one, self.extent_two
        if self.extent_type == ExtentType.SYMMETRIC:
            return -abs(one), abs(one)
        if self.extent_type == ExtentType.TWO_SIDES:
            return min(0.0, one, -two), max(0.0, one, -two)
        return min(0.0, one), max(0.0, one)


@dataclass(frozen=True, slots=True)
class Program:
    """A part: its extrudes in building order."""

    extrudes: tuple[Extrude, ...]
    notices: tuple[Notice, ...] = field(default=(), compare=False)
    """What the reader should know although the text was accepted (ignored lines, aliases, repairs)."""
    source: Source | None = field(default=None, compare=False, repr=False)
    """Where each feature stands in the text; None for a program that was not parsed."""

    def curves(self) -> Iterator[Curve]:
        """All curves of all loops, in the order of the text."""
        for extrude in self.extrudes:
            for loop in extrude.loops:
                yield from loop.curves
