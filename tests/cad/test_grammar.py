"""The incremental parser: all stored programs are in its language, and everything in its language is a program."""

from __future__ import annotations

import random

import pytest

from mm.cad import emit, parse
from mm.cad.grammar import Grammar
from mm.cad.matchers import Number

LETTERS = [chr(code) for code in range(32, 127)] + ["\n", "\t"]


@pytest.mark.parametrize("style", ["official", "canonical"])
def test_every_stored_program_is_accepted(parts, style):
    grammar = Grammar(style)
    for part in parts:
        text = emit(parse(part.text), style)
        state = grammar.start().advance(text)
        assert state is not None and state.complete, part.name


@pytest.mark.parametrize("style", ["official", "canonical"])
def test_every_prefix_can_be_completed(parts, style):
    """A place is complete exactly where an extrude ends, and its ending makes a program of it."""
    text = emit(parse(parts[5].text), style)
    state = Grammar(style).start()
    for i, letter in enumerate(text):
        state = state.step(letter)
        statement = text[: i + 1].replace("\n\t", "").splitlines()[-1]
        assert state.complete == (letter == "\n" and "add_extrude(" in statement and statement.endswith(")"))
        if i % 7 == 0:
            whole = text[: i + 1] + state.ending()
            assert parse(whole).extrudes[0].operation == 0


def walked(grammar, rng, length):
    """A random text of the language, letter by letter, then ended."""
    state, text = grammar.start(), ""
    while len(text) < length:
        options = [(letter, after) for letter in LETTERS if (after := state.step(letter)) is not None]
        if not options:
            assert state.complete, text[-200:]
            break
        letter, state = rng.choice(options)
        text += letter
    return text + state.ending()


@pytest.mark.parametrize("style", ["official", "canonical"])
def test_random_walks_are_programs(style):
    """No dead end, and `parse` accepts whatever was written."""
    grammar = Grammar(style, max_extrudes=3, max_curves=5)
    kinds = set()
    for seed in range(8):
        program = parse(walked(grammar, random.Random(seed), 700))
        kinds |= {type(curve).__name__ for curve in program.curves()} | {
            type(e.plane).__name__ for e in program.extrudes
        }
    assert {"Line", "Circle"} <= kinds


HEAD = """\
SketchPlane0 = add_sketchplane(
	origin= [0., 0., 0.], normal= [0., 0., 1.], x_axis= [1., 0., 0.])
Loops0 = []
Curves0_0 = []
Line0_0_0 = add_line(start= [0., 0.], end= [4., 0.])
"""
CORNER = HEAD + "Line0_0_1 = add_line(start= [4., 0.], end= [4., 3.])\n"
TRIANGLE = CORNER + "Line0_0_2 = add_line(start= [4., 3.], end= [0., 0.])\n"
SOLID = TRIANGLE + (
    "Loop0_0 = add_loop(Curves0_0)\nProfile0 = add_profile(Loops0)\n"
    "Sketch0 = add_sketch(sketch_plane= SketchPlane0, profile= Profile0)\n"
    "Extrude0 = add_extrude(sketch= Sketch0,\n\toperation= 0, type= 0, extent_one= 5., extent_two= 0.)\n"
)
SIDE = SOLID + 'SketchPlane1 = add_sketchplane_ref(\n\tExtrude0, origin= [1., 1.], type= "line", line= Line0_0_'


@pytest.mark.parametrize(
    ("before", "allowed", "forbidden"),
    [
        ("", "SketchPlane0 = add_sketchplane(", "SketchPlane0 = add_sketchplane_ref("),  # nothing to refer to yet
        ("", "SketchPlane0", "SketchPlane1"),
        (HEAD.partition("normal= [0., 0., 1")[0] + "normal= [0., 0., 0", ".1]", ".0000]"),  # no direction
        (HEAD.partition("x_axis= [1")[0] + "x_axis= [0., 0.", "1, 0.]", ", 1.]"),  # parallel to the normal
        (HEAD, "Line0_0_1 = add_line(start= [4., 0.]", "Line0_0_1 = add_line(start= [4., 1.]"),  # the joint
        (HEAD, "Line0_0_1 = add_line(start= [ 4., -0.]", "Line0_0_2"),  # another sign of zero
        (HEAD, "Arc0_0_1", "Circle0_0_1"),
        (HEAD + "Line0_0_1 = add_line(start= [4., 0.], end= [4., 0", ".5]", "]"),  # no length
        (HEAD + "Arc0_0_1 = add_arc(start= [4., 0.], end= [0., 0.], mid= [2., 0", ".5]", ".]"),  # on a line
        (CORNER, "Line0_0_2", "Loop0_0"),  # the loop is open
        (TRIANGLE, "Loop0_0", "Line0_0_3"),  # the loop is closed
        (SOLID + "SketchPlane1 = add_sketchplane_ref(\n\tExtr", "ude0, ", "ude1, "),  # not itself
        (SIDE, "2)\n", "3)\n"),  # a line of that extrude
        (SIDE, "2, angle= -np.pi/2, reverse= True)\n", "2, angle= np.pi.real"),
        (SIDE, "2, angle= -0.7854)\n", "2, reverse= False)\n"),
        (SOLID.replace("5., extent_two= 0.)\n", ""), "-5., extent_two= 0.)\n", "0.0000, extent_two= 0.)\n"),
        (SOLID.replace("5., extent_two= 0.)\n", ""), "999999.9999,", "1000000"),
    ],
)  # fmt: skip
def test_what_may_follow(before, allowed, forbidden):
    state = Grammar().start().advance(before)
    assert state is not None, "the beginning itself was refused"
    assert state.advance(allowed) is not None
    assert state.advance(forbidden) is None


def test_numbers_never_lead_into_a_dead_end():
    """A forbidden value, approached from everywhere, can always be left."""
    for kind in ("length", "axis"):
        matcher = Number(kind, lambda v: v not in (0.0, 1.5, -2.0))
        for seed in range(400):
            rng, text = random.Random(seed), ""
            for _ in range(24):
                # Letters of the forbidden numbers are much more likely than others.
                options = [c for c in "0000015.5-2  e+-0" if matcher.goes_on(text + c)]
                options = options or [c for c in "0123456789.e+-" if matcher.goes_on(text + c)]
                if not options:
                    break
                text += rng.choice(options)
            assert matcher.done(text + matcher.ending(text)), text


def test_limits_of_the_grammar():
    grammar = Grammar("canonical", max_extrudes=1, max_curves=4)
    text = walked(grammar, random.Random(1), 3000)
    assert len(parse(text).extrudes) == 1
    with pytest.raises(ValueError, match="style"):
        Grammar("pretty")
