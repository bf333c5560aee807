"""Loops and profiles in one canonical form: chained, closed, counter-clockwise, boundary first."""

from __future__ import annotations

from dataclasses import dataclass

from mm.cad.errors import Notice
from mm.cad.program import Curve, Extrude, Loop


@dataclass(frozen=True, slots=True)
class CanonicalLoop:
    """A closed, counter-clockwise loop."""

    curves: tuple[Curve, ...]
    """Each curve starts where the one before ends (exactly); one Circle alone is a loop, too."""
    order: tuple[int, ...]
    """`curves[i]` was curve `order[i]` of the written loop."""


@dataclass(frozen=True, slots=True)
class CanonicalProfile:
    """A planar region: `loops[0]` is the outer boundary, the others are holes; all counter-clockwise."""

    loops: tuple[CanonicalLoop, ...]
    order: tuple[int, ...]
    """`loops[i]` was loop `order[i]` of the written profile."""
    notices: tuple[Notice, ...] = ()


def canonical_loop(loop: Loop) -> CanonicalLoop:
    """Chain, rotate, orient and close a loop."""
    raise NotImplementedError


def canonical_profile(extrude: Extrude) -> CanonicalProfile:
    """The loops of an extrude in canonical form, boundary first."""
    raise NotImplementedError
