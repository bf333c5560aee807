"""Findings about programs that can be read, but not built."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from mm.cad import parse, validate
from mm.cad.errors import CODES
from mm.cad.examples import PLATE
from mm.cad.loops import canonical_loop, canonical_profile
from mm.cad.program import AbsolutePlane, Arc, Circle, Extrude, Line, Loop, Program, RelativePlane

TOP = AbsolutePlane((0.0, 0.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0))


def polygon(*corners):
    return Loop(tuple(Line(corners[k], corners[(k + 1) % len(corners)]) for k in range(len(corners))))


def part(*loops, plane=TOP, operation=0, extent_type=0, one=1.0, two=0.0):
    return Program((Extrude(plane, loops, operation, extent_type, one, two),))


SQUARE = polygon((0.0, 0.0), (10.0, 0.0), (10.0, 10.0), (0.0, 10.0))
HOLE = Loop((Circle((5.0, 5.0), 2.0),))
OPEN = Loop((*SQUARE.curves[:3], Line((0.0, 10.0), (0.0, 1.0))))
WRONG = {
    "no-extrude": Program(()),
    "too-many": Program(part(SQUARE).extrudes * 65),
    "non-finite": part(SQUARE, one=math.nan),
    "out-of-range": part(polygon((0.0, 0.0), (2e6, 0.0), (0.0, 5.0))),
    "bad-value": part(SQUARE, operation=4),
    "zero-extent": part(SQUARE, extent_type=2, one=0.0, two=0.0),
    "degenerate-plane": part(SQUARE, plane=AbsolutePlane((0, 0, 0), (0, 0, 1), (0, 0, 1))),
    "use-before-def": part(SQUARE, plane=RelativePlane(0, (0, 0), "sameplane")),
    "foreign-line": Program(
        (*part(SQUARE).extrudes, *part(SQUARE, plane=RelativePlane(0, (0, 0), "line", (0, 9))).extrudes)
    ),
    "empty-profile": part(),
    "empty-loop": part(SQUARE, Loop((Line((1.0, 1.0), (1.0, 1.0)),))),
    "mixed-loop": part(Loop((*SQUARE.curves, Circle((3.0, 3.0), 1.0)))),
    "open-loop": part(OPEN),
    "degenerate-curve": part(Loop((Line((0.0, 0.0), (4.0, 0.0)), Arc((4.0, 0.0), (0.0, 0.0), (2.0, 0.0))))),
    "flat-loop": part(Loop((Line((0.0, 0.0), (4.0, 0.0)), Line((4.0, 0.0), (0.0, 0.0))))),
    "self-intersecting": part(polygon((0.0, 0.0), (10.0, 10.0), (10.0, 0.0), (0.0, 9.0))),
    "loop-outside": part(SQUARE, Loop((Circle((50.0, 5.0), 2.0),))),
}


@pytest.mark.parametrize("code", WRONG)
def test_found(code):
    findings = validate(WRONG[code])
    assert code in [finding.code for finding in findings if finding.severity == "error"]
    assert code in CODES and str(findings[0]).startswith("error: ")


@pytest.mark.parametrize(
    "program",
    [
        part(SQUARE, HOLE),
        part(HOLE),
        part(SQUARE, one=-3.0),
        part(SQUARE, extent_type=2, one=-20.0, two=20.0),
        part(Loop((Line((0.0, 0.0), (4.0, 0.0)), Arc((4.0, 0.0), (0.0, 0.0), (2.0, 2.0))))),
        part(SQUARE, polygon((0.0, 0.0), (3.0, 0.0), (0.0, 3.0))),  # a hole that touches the boundary from inside
    ],
)
def test_sound(program):
    assert validate(program) == ()


def test_stored_parts_are_sound(parts):
    for stored in parts:
        assert [f for f in validate(parse(stored.text)) if f.severity == "error"] == [], stored.name


def test_texts_are_judged_without_an_exception():
    (finding,) = validate(PLATE.replace("add_loop", "add_box"))
    assert (finding.code, finding.severity, finding.line) == ("unknown-function", "error", 6)
    (empty,) = validate("")
    assert empty.code == "no-extrude"


def test_crossing_loops_are_found():
    program = part(SQUARE, Loop((Circle((9.5, 5.0), 2.0),)))
    assert {"loop-outside", "self-intersecting"} & {f.code for f in validate(program)}


def test_small_gaps_are_closed_and_announced():
    gap = Loop((*SQUARE.curves[:3], Line((0.0, 10.0), (0.0, 0.004))))
    loop = canonical_loop(gap)
    assert loop.gap == pytest.approx(0.004)
    assert all(a.end == b.start for a, b in zip(loop.curves, (*loop.curves[1:], loop.curves[0]), strict=True))
    (finding,) = validate(part(gap))
    assert (finding.code, finding.severity, finding.extrude) == ("snapped", "warning", 0)


def test_curves_in_any_order_make_the_same_loop():
    import itertools

    for order in itertools.permutations(range(4)):
        for turned in itertools.product((False, True), repeat=4):
            curves = [SQUARE.curves[k] for k in order]
            mixed = Loop(tuple(Line(c.end, c.start) if t else c for c, t in zip(curves, turned, strict=True)))
            loop = canonical_loop(mixed)
            assert [c.start for c in loop.curves] == [(0.0, 0.0), (10.0, 0.0), (10.0, 10.0), (0.0, 10.0)]
            assert {loop.curves[i].start for i in range(4)} == {c.start for c in SQUARE.curves}
            for curve, index in zip(loop.curves, loop.order, strict=True):
                assert {curve.start, curve.end} == {mixed.curves[index].start, mixed.curves[index].end}


def test_a_loop_that_goes_straight_on_at_its_first_corner_is_turned_round():
    """The published rule turns a loop unless it turns left there, and "straight on" is no left turn: 0 is on its side.

    An arc reaches (0, 0) along the chord from its middle, (2, 2), and the line leaves along (4, 4).
    """
    curves = (
        Line((0.0, 0.0), (4.0, 4.0)),
        Line((4.0, 4.0), (1.0, -4.0)),
        Arc((1.0, -4.0), (0.0, 0.0), (-2.0, -2.0)),
    )
    assert canonical_loop(Loop(curves)).order == (2, 1, 0)
    back = tuple(replace(curve, start=curve.end, end=curve.start) for curve in reversed(curves))
    assert canonical_loop(Loop(back)).order == (2, 1, 0), "the rule looks at the corner alone, whichever way it is gone"


def test_the_boundary_is_the_loop_that_holds_the_others():
    """The published rule takes the loop with the smallest corner; a hole may have that corner, too."""
    inner = polygon((0.0, 0.0), (0.0, 4.0), (4.0, 0.0))
    outer = polygon((0.0, 0.0), (10.0, 0.0), (10.0, 10.0), (0.0, 10.0))
    profile = canonical_profile(part(inner, outer).extrudes[0])
    assert profile.order == (1, 0)
    assert [notice.code for notice in profile.notices] == ["loop-order"]
