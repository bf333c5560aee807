"""What the language accepts, and every way to be refused."""

from __future__ import annotations

import math
import pickle

import pytest

from mm.cad import ProgramError, emit, parse
from mm.cad.errors import CODES
from mm.cad.examples import PLATE

BOX = """\
P = add_sketchplane(origin=[0,0,0], normal=[0,0,1], x_axis=[1,0,0])
LS = []
CS = []
A = add_line(start=[0,0], end=[4,0])
B = add_line(start=[4,0], end=[0,3])
C = add_line([0,3], [0,0])
L = add_loop(CS)
F = add_profile(LS)
S = add_sketch(P, F)
E = add_extrude(S, 0, 0, 5, 0)
"""


def replaced(old, new, text=BOX):
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize(
    "text",
    [
        BOX,
        BOX.replace("\n", "\r\n"),
        "\ufeff" + BOX,
        "# a part\n\n" + BOX.replace("LS = []\n", "LS = []   # loops\n\n   \n"),
        f"Of course, here are the codes:\n```python\n{BOX}```\nHave fun.",
        f"```\n{BOX}",  # the end of the fence is missing
        BOX.replace("[4,0]", "[ 8/2.,  +-0. ]").replace("5,", ".5e1,"),
        BOX.replace("5, 0)", "\n\textent_one= np.pi*5/math.pi+pi-pi,\n  extent_two= -(0.))"),
        BOX.replace("LS = []\nCS = []", "LS, CS = [], []"),
        BOX.replace(
            "E = add_extrude(S, 0,", "E = add_extrude(operation=0., sketch=S, type=0, extent_two=0, extent_one=5)#"
        ),
        BOX.replace("5, 0)", "height, 0)").replace("P = ", "height = 10/2\nP = "),
        BOX.replace("L = ", "CS.append(A)\nCS.append(B)\nCS.append(C)\nL = ").replace("F = ", "LS.append(L)\nF = "),
        BOX.replace("L = ", "CS.append(C)\nL = "),  # explicit for one, automatic for the others
    ],
)
def test_accepted_forms_say_the_same(text):
    assert parse(text) == parse(BOX)
    assert parse(text).extrudes[0].loops[0].curves[0].end == (4.0, 0.0)


def test_names_carry_no_meaning():
    """The published executor finds lists by the first letters of a name and drops geometry that is called otherwise."""
    text = replaced("CS = []", "Loops = []").replace("add_loop(CS)", "add_loop(Loops)")
    assert parse(text.replace("LS", "Curves")) == parse(BOX)


def test_curves_go_into_the_latest_list_of_curves():
    text = replaced("F = ", "CS2 = []\nO = add_circle([1,1], .25)\nL2 = add_loop(CS2)\nF = ")
    loops = parse(text).extrudes[0].loops
    assert [len(loop.curves) for loop in loops] == [3, 1]


def test_explicit_append_is_not_doubled():
    text = replaced("L = ", "CS.append(A)\nL = ")
    assert len(parse(text).extrudes[0].loops[0].curves) == 3


REJECTED = [
    ("too-long", BOX + "#" * 300_000, 1),
    ("too-deep", replaced("[4,0]", "[((((((((4)))))))),0]"), 4),
    ("too-many", BOX + "".join(f"a{i} = []\n" for i in range(5000)), None),
    ("too-many", BOX + "".join(f"x{i} = add_circle([0,0],1)\n" for i in range(2000)), None),
    ("too-many", BOX + "".join(f"x{i} = add_extrude(S,1,0,1,0)\n" for i in range(64)), None),
    ("bad-character", replaced("LS = []", "LS = [];"), 2),
    ("bad-character", replaced("A = ", "\u0410 = "), 4),  # a Cyrillic letter
    ("bad-syntax", replaced("LS = []", "LS = [1]"), 2),
    ("bad-syntax", replaced("LS = []", "LS += []"), 2),
    ("bad-syntax", replaced("LS = []", "LS.extend(CS)"), 2),
    ("bad-syntax", replaced("LS = []", "import os"), 2),
    ("bad-syntax", replaced("[4,0]", "[2**2,0]"), 4),
    ("bad-syntax", replaced("[4,0]", "[np.e,0]"), 4),
    ("bad-syntax", replaced("[4,0]", "[np.pi.real,0]"), 4),
    ("bad-syntax", replaced("add_line(start=[4,0], end=[0,3])", "add_line(start=[4,0], [0,3])"), 5),
    ("bad-syntax", replaced("\nS = ", "\nnp = "), 9),
    ("bad-syntax", "Here is a part. " + BOX, 1),
    ("unterminated", BOX[:-10], 10),
    ("unterminated", replaced("end=[4,0])", "end=[4,"), 4),
    ("unterminated", replaced("LS = []", 'LS = "abc'), 2),
    ("non-finite", replaced("[4,0]", "[1e999,0]"), 4),
    ("non-finite", replaced("[4,0]", "[1e300*1e300,0]"), 4),
    ("non-finite", replaced("[4,0]", "[1/0,0]"), 4),
    ("non-finite", replaced("[4,0]", f"[{'9' * 400},0]"), 4),
    ("out-of-range", replaced("[4,0]", "[1000001,0]"), 4),
    ("unknown-function", replaced("add_loop", "add_box"), 7),
    ("unknown-function", replaced("add_loop(CS)", "__import__('os')"), 7),
    ("undefined-name", replaced("add_loop(CS)", "add_loop(XX)"), 7),
    ("undefined-name", replaced("[4,0]", "[w,0]"), 4),
    ("no-list", replaced("LS = []\nCS = []\n", ""), 2),
    ("no-list", replaced("CS = []\n", ""), 3),
    ("undefined-name", replaced("L = ", "CS.append(Z)\nL = "), 7),
    ("use-before-def", replaced("add_sketch(P, F)", "add_sketch(P, G)") + "G = add_profile(LS)\n", 9),
    ("use-before-def", replaced("[4,0]", "[w,0]") + "w = 4\n", 4),
    ("redefined-name", replaced("B = ", "A = "), 5),
    ("redefined-name", replaced("LS = []", "LS, LS = [], []"), 2),
    ("unknown-argument", replaced("end=", "stop="), 4),
    ("repeated-argument", replaced("end=", "start="), 4),
    ("repeated-argument", replaced("add_line([0,3], [0,0])", "add_line([0,3], start=[0,0])"), 6),
    ("wrong-arity", replaced("[0,3], [0,0]", "[0,3], [0,0], [1,1]"), 6),
    ("wrong-arity", replaced("[0,3], [0,0]", "[0,3]"), 6),
    ("bad-type", replaced("[4,0]", "4"), 4),
    ("bad-type", replaced("[4,0]", "[4,0,0]"), 4),
    ("bad-type", replaced("(S, 0, 0, 5", "(S, 0, 0, [5]"), 10),
    ("bad-type", replaced("(S, 0, 0, 5", "(S, 0, 0, True"), 10),
    ("bad-type", replaced("(S, 0, 0, 5", "('S', 0, 0, 5"), 10),
    ("bad-type", replaced("add_sketch(P, F)", "add_sketch(F, P)"), 9),
    ("bad-type", replaced("add_loop(CS)", "add_loop(P)"), 7),
    ("bad-type", replaced("[0,3])", "[P,3])"), 5),
    ("bad-type", replaced("L = ", "CS.append(P)\nL = "), 7),
    ("bad-value", replaced("(S, 0,", "(S, 4,"), 10),
    ("bad-value", replaced("(S, 0,", "(S, 0.5,"), 10),
    ("bad-value", replaced("(S, 0, 0,", "(S, 0, 3,"), 10),
    ("bad-value", BOX + "Q = add_sketchplane_ref(E, [0,0], 'top')\n", 11),
    ("repeated-append", replaced("L = ", "CS.append(A)\nCS.append(A)\nL = "), None),
    ("empty-loop", replaced("L = ", "CS2 = []\nL2 = add_loop(CS2)\nL = "), 8),
    ("empty-profile", replaced("F = ", "LS2 = []\nF2 = add_profile(LS2)\nF = "), 9),
    ("missing-line", BOX + "Q = add_sketchplane_ref(E, [0,0], 'line')\n", 11),
    ("foreign-line", BOX + "CS9 = []\nZ = add_line([0,0],[1,1])\nL9 = add_loop(CS9)\n"
     "Q = add_sketchplane_ref(E, [0,0], 'line', line=Z)\n", 14),
    ("no-extrude", BOX[: BOX.index("E = ")], None),
    ("no-extrude", "", None),
    ("degenerate-plane", replaced("[0,0,1]", "[0,0,0]"), 1),
    ("degenerate-plane", replaced("[0,0,1]", "[2,0,0]"), 1),
    ("degenerate-curve", replaced("B = ", "O = add_circle([0,0], 0)\nB = "), 5),
    ("degenerate-curve", replaced("B = ", "O = add_arc([0,0], [0,0], [1,1])\nB = "), 5),
    ("zero-extent", replaced("5, 0)", "0, 0)"), 10),
    ("zero-extent", replaced("0, 5, 0)", "2, 0, 0)"), 10),
]  # fmt: skip


@pytest.mark.parametrize(("code", "text", "line"), REJECTED)
def test_rejected(code, text, line):
    with pytest.raises(ProgramError) as caught:
        parse(text)
    assert caught.value.code == code, str(caught.value)
    assert line is None or caught.value.line == line
    assert str(caught.value.line) in str(caught.value) and f"[{code}]" in str(caught.value)


def test_every_code_of_the_parser_is_tested():
    geometry = {"mixed-loop", "open-loop", "flat-loop", "self-intersecting", "loop-outside", "loop-order"}
    notices = {
        "ignored-import",
        "ignored-argument",
        "alias",
        "unused",
        "version-1",
        "snapped",
        "truncated",
        "legacy-frames",
    }
    assert {code for code, _, _ in REJECTED} == set(CODES) - geometry - notices


def test_place_of_an_error():
    with pytest.raises(ProgramError) as caught:
        parse(f"Sure:\n```python\n{replaced('[0,3])', '[zero,3])')}```")
    assert (caught.value.line, caught.value.column) == (7, BOX.splitlines()[4].index("[0,3])") + 2)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.code, copy.line, copy.column, str(copy)) == (
        "undefined-name", caught.value.line, caught.value.column, str(caught.value))  # fmt: skip


def test_large_programs_are_accepted_up_to_the_limits():
    curves = "".join(f"x{i} = add_circle([0,0],1)\n" for i in range(1997))
    extrudes = "".join(f"E{i} = add_extrude(S,1,0,1,0)\n" for i in range(63))
    assert len(parse(BOX + curves + extrudes).extrudes) == 64


def test_notices():
    assert [n.code for n in parse("import numpy as np\nfrom math import pi\n" + BOX).notices] == ["ignored-import"] * 2
    rest = BOX.replace("P = ", "P0 = ").replace("add_sketch(P, F)", "add_sketch(P, F, [1,0,0], 2)")
    assert "ignored-argument" in [n.code for n in parse(rest.replace("P0 = ", "P = ")).notices]
    ref = BOX + "Q = add_sketchplane_ref(E, [0,0], 'sameplan')\nS2 = add_sketch(Q, F)\nE2 = add_extrude(S2,1,0,1,0)\n"
    program = parse(ref)
    assert [n.code for n in program.notices] == ["alias"] and program.extrudes[1].plane.kind == "sameplane"


# recovery ------------------------------------------------------------------------------------------------------


def test_recovery_of_every_prefix(parts):
    """The extrudes that are complete before the cut, for every cut of a program; never an error after the first."""
    text = next(part.text for part in parts if part.name == "00280150")
    whole = parse(text)
    ends = [text.index("\n", text.index("extent_one", text.index(f"Extrude{i} = "))) for i in range(4)]
    for cut in range(0, len(text), 3):
        complete = sum(end <= cut + 0 for end in ends)
        if complete == 0 and cut < ends[0] - 1:
            with pytest.raises(ProgramError):
                parse(text[:cut], recover=True)
            continue
        program = parse(text[:cut], recover=True)
        assert program.extrudes == whole.extrudes[: len(program.extrudes)]
        assert len(program.extrudes) >= complete


def test_recovery_says_what_is_missing():
    program = parse(PLATE + "SketchPlane1 = add_sketchplane_ref(\n\tExtr", recover=True)
    assert program == parse(PLATE)
    assert [(n.code, n.line) for n in program.notices] == [("truncated", 15)]


# version 1 -----------------------------------------------------------------------------------------------------

VERSION_1 = """\
SketchPlane0 = add_sketchplane(origin=[9,9,9], normal=[9,9,9], x_axis=[1.,0.,0.], y_axis=[0.,0.,1.])
Loops0 = []
Curves0_0 = []
Line0_0_0 = add_line(start=[128,128], end=[223,128])
Curves0_0.append(Line0_0_0)
Arc0_0_1 = add_arc(start=[223,128], end=[128,128], mid=[175.5,175.5])
Curves0_0.append(Arc0_0_1)
Loop0_0 = add_loop(Curves0_0)
Loops0.append(Loop0_0)
Profile0 = add_profile(Loops0)
Sketch0 = add_sketch(sketch_plane=SketchPlane0, profile=Profile0, sketch_position=[-0.75,0.,.5], sketch_size=0.375)
Extrude0 = add_extrude(sketch=Sketch0, operation=0, type=0, extent_one=0.25, extent_two=0.)
"""


def test_version_1_is_converted():
    program = parse(VERSION_1)
    (extrude,) = program.extrudes
    assert extrude.plane.origin == (-0.75, 0.0, 0.5) and extrude.plane.normal == (0.0, -1.0, 0.0)
    line, arc = extrude.loops[0].curves
    assert line.start == (0.0, 0.0) and line.end == pytest.approx((0.375, 0.0))
    assert arc.mid == pytest.approx((0.1875, 0.1875))
    assert [n.code for n in program.notices] == ["version-1"]
    assert parse(emit(program, "canonical", decimals=None)) == program


def test_version_1_without_size():
    with pytest.raises(ProgramError, match="sketch_size"):
        parse(VERSION_1.replace("sketch_size=0.375", "sketch_size=0"))
    with pytest.raises(ProgramError, match=r"parallel|zero"):
        parse(VERSION_1.replace("y_axis=[0.,0.,1.]", "y_axis=[2,0,0]"))


def test_angles_are_radians():
    ref = BOX + "Q = add_sketchplane_ref(E, [0,0], 'sameplane', angle=-3*np.pi/4)\nS2 = add_sketch(Q, F)\n"
    assert parse(ref + "E2 = add_extrude(S2,1,0,1,0)\n").extrudes[1].plane.angle == pytest.approx(-0.75 * math.pi)
