"""Edits change what they say and nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mm.cad import edit, emit, from_deepcad, parse, resolve_planes, validate
from mm.cad.editing import EditError

STACK = """\
# base plate
PlateA = add_sketchplane(
	origin= [0., 0., 0.], normal= [0., 0., 1.], x_axis= [1., 0., 0.])
LoopsA, CurvesA = [], []
Side0 = add_line(start= [0., 0.], end= [40., 0.])
Side1 = add_line(start= [40., 0.], end= [40., 20.])   # right
Side2 = add_line(start= [40., 20.], end= [0., 20.])
Side3 = add_line(start= [0., 20.], end= [0., 0.])
OutlineA = add_loop(CurvesA)
ProfileA = add_profile(LoopsA)
SketchA = add_sketch(sketch_plane= PlateA, profile= ProfileA)
Base = add_extrude(sketch= SketchA,
	operation= 0, type= 0, extent_one= 5., extent_two= 0.)

PlaneB = add_sketchplane_ref(
	Base, origin = [20., 10.], type = "extent_one")
LoopsB = []
CurvesB = []
RoundB = add_circle(center= [0., 0.], radius= 4.)
OutlineB = add_loop(CurvesB)
ProfileB = add_profile(LoopsB)
SketchB = add_sketch(PlaneB, ProfileB)
Pin = add_extrude(SketchB, 1, 0, 10., 0.)
PlaneC = add_sketchplane_ref(Pin, origin= [0., 0.], type= "extent_one")
SketchC = add_sketch(PlaneC, ProfileB)
Hole = add_extrude(SketchC, 2, 0, -5., 0.)
PlaneD = add_sketchplane_ref(Base, [4., 2.], "line", line= Side1)
SketchD = add_sketch(PlaneD, ProfileB)
Knob = add_extrude(SketchD, 1, 0, 3., 0.)
PlaneE = add_sketchplane(origin= [0., 0., 30.], normal= [0., 0., 1.], x_axis= [1., 0., 0.])
SketchE = add_sketch(PlaneE, ProfileB)
Lid = add_extrude(SketchE, 1, 0, 5., 0.)
"""


def changed_lines(before, after):
    before, after = before.splitlines(), after.splitlines()
    assert len(before) == len(after)
    return [b for a, b in zip(before, after, strict=True) if a != b]


def test_set_changes_one_line_and_reports_what_moves():
    editor = edit(STACK)
    change = editor.set("Base", extent_one=12.5)
    assert changed_lines(STACK, change.text) == ["\toperation= 0, type= 0, extent_one= 12.5, extent_two= 0.)"]
    assert [(m.extrude, m.shift, m.reshaped) for m in change.moved] == [
        ("Base", (0.0, 0.0, 0.0), True),
        ("Pin", (0.0, 0.0, 7.5), False),
        ("Hole", (0.0, 0.0, 7.5), False),
    ]
    assert editor.text == change.text and editor.program == parse(change.text)


def test_moving_a_line_moves_the_side_plane():
    editor = edit(STACK)
    with pytest.raises(EditError, match="gap of 10 mm"):
        editor.set("Side0", end=[50, 0])
    corners = {"Side0": {"end": [50, 0]}, "Side1": {"start": [50, 0], "end": [50, 20]}, "Side2": {"start": (50, 20)}}
    base, knob = editor.set_many(corners).moved
    assert base.extrude == "Base" and base.reshaped
    assert knob.extrude == "Knob" and knob.shift == pytest.approx((10, 0, 0))


def test_set_adds_an_argument_and_turns():
    change = edit(STACK).set("PlaneB", angle=math.pi / 2, reverse=True)
    assert 'type = "extent_one", angle= 1.5708, reverse= True)' in change.text
    turned = {m.extrude: m.turn for m in change.moved}
    assert set(turned) == {"Pin", "Hole"} and turned["Pin"] == pytest.approx(math.pi)
    with_formula = edit(STACK).set("PlaneB", angle="np.pi/2")
    assert with_formula.program.extrudes[1].plane.angle == math.pi / 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e.set("Nothing", radius=1), "no Nothing"),
        (lambda e: e.set("RoundB", diameter=1), "no argument diameter"),
        (lambda e: e.set("RoundB", radius=0), "degenerate-curve"),
        (lambda e: e.set("CurvesB", radius=1), "is a list"),
        (lambda e: e.set("PlaneB", type="top"), "bad-value"),
        (lambda e: e.set("Base", extent_one="__import__('os')"), "bad-"),
        (lambda e: e.rename("RoundB", "Base"), "already defined"),
        (lambda e: e.rename("RoundB", "add_line"), "cannot be a name"),
        (lambda e: e.rename("RoundB", "a b"), "cannot be a name"),
        (lambda e: e.delete("Base"), "Pin"),
        (lambda e: e.delete("RoundB"), "no extrude"),
        (lambda e: e.move("Pin", before="Base"), "use-before-def"),
        (lambda e: e.move("Pin", before="Pin"), "in front of itself"),
        (lambda e: e.insert("x = add_loop(CurvesZ)"), "undefined-name"),
        (lambda e: e.parametrise(123.0, "width"), "does not occur"),
        (lambda e: e.parametrise(4.0, "Base"), "no free name"),
    ],
)
def test_impossible_edits_change_nothing(call, message):
    editor = edit(STACK)
    with pytest.raises(EditError, match=message):
        call(editor)
    assert editor.text == STACK and editor.program == parse(STACK)


def test_rename_touches_only_the_name():
    change = edit(STACK).rename("Base", "Plate")
    assert change.program == parse(STACK) and change.moved == ()
    assert "Base" not in change.text and change.text.replace("Plate = add_ext", "Base = add_ext").count("Plate,") == 2
    assert len(changed_lines(STACK, change.text)) == 3
    named_like_an_argument = edit(STACK.replace("RoundB", "radius")).rename("radius", "RoundB")
    assert named_like_an_argument.text == STACK


def test_delete_takes_what_nobody_else_needs():
    editor = edit(STACK)
    change = editor.delete("Hole")
    lines = [line for line in STACK.splitlines(keepends=True) if not line.startswith(("PlaneC", "SketchC", "Hole"))]
    assert change.text == "".join(lines)  # ProfileB is still in use
    assert change.moved == ()
    change = editor.delete("Base", dependents=True)
    assert [e.plane.origin for e in change.program.extrudes] == [(0.0, 0.0, 30.0)]
    assert "RoundB" in change.text and "Side0" not in change.text and change.text.startswith("# base plate\n")


def test_deleting_everything_is_refused():
    with pytest.raises(EditError, match="no-extrude"):
        edit(edit(STACK).delete("Base", dependents=True).text).delete("Lid")


def test_move_keeps_every_line():
    change = edit(STACK).move("Lid", before="Knob")
    assert sorted(change.text.splitlines()) == sorted(STACK.splitlines())
    assert [e.operation for e in change.program.extrudes] == [0, 1, 2, 1, 1]
    assert change.program.extrudes[3].plane.origin == (0.0, 0.0, 30.0) and change.moved == ()
    back = edit(change.text).move("Lid")
    assert back.program == parse(STACK)


def test_insert_a_feature():
    feature = "PX = add_sketchplane_ref(Pin, [0,0], 'sameplane')\nSX = add_sketch(PX, ProfileB)\n"
    feature += "X = add_extrude(SX, 1, 0, 1, 0)"
    end = edit(STACK).insert(feature)
    assert end.text == STACK + feature + "\n" and len(end.program.extrudes) == 6 and end.moved == ()
    middle = edit(STACK).insert(feature, before="Knob")
    assert middle.moved == () and middle.program.extrudes[3].plane.extrude == 1
    assert middle.text.replace(feature + "\n", "") == STACK


def test_parametrise():
    editor = edit(STACK)
    assert editor.repeated()[40.0] == 4
    change = editor.parametrise(40.0, "width")
    assert change.program == parse(STACK) and change.moved == ()
    assert change.text.startswith("# base plate\nwidth = 40.\nPlateA") and change.text.count("width") == 5
    wider = editor.set("width", value=60)
    assert wider.program.extrudes[0].loops[0].curves[1].start == (60.0, 0.0)
    assert {m.extrude for m in wider.moved} == {"Base", "Knob"}
    negative = edit(STACK).parametrise(-5.0, "depth")
    assert negative.program == parse(STACK) and "add_extrude(SketchC, 2, 0, depth, 0.)" in negative.text
    only_here = edit(STACK).parametrise(5.0, "height", where=["Base"])
    assert only_here.text.count("height") == 2 and only_here.program == parse(STACK)


def test_operation_codes_are_no_lengths():
    """The 2 of "operation= 2" is not the 2 mm of an offset."""
    text = STACK.replace("[4., 2.]", "[4., 1.]")
    change = edit(text).parametrise(1.0, "one")
    assert "add_extrude(SketchB, 1, 0" in change.text or change.program == parse(text)


def test_programs_inside_a_fence():
    fenced = f"Of course:\n```python\n{STACK}```\nDone."
    change = edit(fenced).set("RoundB", radius=3)
    assert change.text.replace("radius= 3.)", "radius= 4.)") == fenced
    assert edit(fenced).insert("P9 = add_sketch(PlaneE, ProfileB)\n").text.endswith("ProfileB)\n```\nDone.")


def test_converted_programs_need_a_text(parts):
    program = from_deepcad(parts[0].deepcad)
    with pytest.raises(EditError, match="has no text"):
        edit(program)
    assert edit(parse(emit(program))).text == parts[0].text


def test_every_extent_of_every_part_can_be_changed(parts):
    """Untouched lines stay as they are, and the report agrees with the planes."""
    for part in parts[:16]:
        editor = edit(part.text)
        before = resolve_planes(editor.program)
        for index, extrude in enumerate(editor.program.extrudes):
            if extrude.extent_type == 2:
                continue
            change = edit(part.text).set(f"Extrude{index}", extent_one=extrude.extent_one * 2)
            assert len(changed_lines(part.text, change.text)) == 1
            after = resolve_planes(change.program)
            gone = [
                i for i, (a, b) in enumerate(zip(before, after, strict=True)) if not np.allclose(a.origin, b.origin)
            ]
            assert {f"Extrude{i}" for i in (*gone, index)} == {m.extrude for m in change.moved}
            assert not [f for f in validate(change.program) if f.severity == "error"]
