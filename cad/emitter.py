"""Program -> text, in the style of the published data or as short as it can be.

Both styles use the same names (`SketchPlane0`, `Curves0_1`, `Line0_1_2`, ...: extrude, loop, curve) and the same order
of statements, and both are read by the published executor.

    official    numbers padded like printed numpy arrays, two statements broken over lines, spaces as irregular as there
    canonical   one line per statement, shortest numbers, no spaces

Source: OpenECAD version 2, text of its published converter, byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from mm.cad.number_text import DECIMALS, angle_text, scalar_text, short_angle, short_number, vector_text
from mm.cad.program import AbsolutePlane, Arc, Curve, Extrude, Line, Program, RelativePlane

Style = Literal["official", "canonical"]


def emit(program: Program, style: Style = "official", *, decimals: int | None = DECIMALS) -> str:
    """Write a program as text.

    Args:
        program: Any program; loops and curves come out in the order they have.
        style: "official" or "canonical".
        decimals: Of lengths, canonical style only; None keeps every digit.

    Returns:
        The text, with a line feed at its end. `parse` reads it back as an equal program, provided that the numbers have
        no more than the printed decimals.

    Raises:
        ValueError: an unknown style, or other `decimals` than 4 in official style.

    Example:
        >>> from mm.cad import parse
        >>> from mm.cad.examples import PLATE
        >>> emit(parse(PLATE)) == PLATE
        True
    """
    if style == "official":
        if decimals != DECIMALS:
            raise ValueError(f'official style has {DECIMALS} decimals, got {decimals}; use style="canonical"')
        layout = OFFICIAL
    elif style == "canonical":
        layout = canonical_layout(decimals)
    else:
        raise ValueError(f'style must be "official" or "canonical", got {style!r}')
    lines = (line for index, extrude in enumerate(program.extrudes) for line in _extrude(index, extrude, layout))
    return "".join(f"{line}\n" for line in lines)


@dataclass(frozen=True, slots=True)
class Layout:
    """How the words of a style are joined."""

    equals: str
    """Between an argument and its value."""
    loose_equals: str
    """The same in references that are no side planes."""
    assign: str
    comma: str
    opening: str
    """After the bracket of a plane."""
    breaking: str
    """After the sketch of an extrude."""
    vector: Callable[..., str]
    scalar: Callable[[float], str]
    angle: Callable[[float], str | None]


OFFICIAL = Layout("= ", " = ", " = ", ", ", "\n\t", ",\n\t", vector_text, scalar_text, angle_text)


def canonical_layout(decimals: int | None) -> Layout:
    """The shortest text; lengths with at most `decimals` decimals."""

    def vector(values: tuple[float, ...]) -> str:
        return f"[{','.join(short_number(value, decimals) for value in values)}]"

    def scalar(value: float) -> str:
        return short_number(value, decimals)

    def angle(value: float) -> str | None:
        return short_angle(value, decimals)

    return Layout("=", "=", "=", ",", "", ",", vector, scalar, angle)


def _extrude(i: int, extrude: Extrude, layout: Layout) -> Iterator[str]:
    """The statements of one extrude."""
    a, eq, c = layout.assign, layout.equals, layout.comma
    yield plane_statement(i, extrude.plane, layout)
    yield f"Loops{i}{a}[]"
    for j, loop in enumerate(extrude.loops):
        yield f"Curves{i}_{j}{a}[]"
        for k, curve in enumerate(loop.curves):
            yield curve_statement(f"{i}_{j}_{k}", curve, layout)
        yield f"Loop{i}_{j}{a}add_loop(Curves{i}_{j})"
    yield f"Profile{i}{a}add_profile(Loops{i})"
    yield f"Sketch{i}{a}add_sketch(sketch_plane{eq}SketchPlane{i}{c}profile{eq}Profile{i})"
    yield extrude_statement(i, extrude, layout)


def extrude_statement(i: int, extrude: Extrude, layout: Layout) -> str:
    """The statement that makes extrude `i`."""
    a, eq, c = layout.assign, layout.equals, layout.comma
    one, two = layout.scalar(extrude.extent_one), layout.scalar(extrude.extent_two)
    kinds = f"operation{eq}{int(extrude.operation)}{c}type{eq}{int(extrude.extent_type)}"
    extents = f"extent_one{eq}{one}{c}extent_two{eq}{two}"
    return f"Extrude{i}{a}add_extrude(sketch{eq}Sketch{i}{layout.breaking}{kinds}{c}{extents})"


def curve_statement(place: str, curve: Curve, layout: Layout) -> str:
    """The statement of a curve; `place` is "extrude_loop_curve"."""
    a, eq, c, vector = layout.assign, layout.equals, layout.comma, layout.vector
    if isinstance(curve, Line):
        return f"Line{place}{a}add_line(start{eq}{vector(curve.start)}{c}end{eq}{vector(curve.end)})"
    if isinstance(curve, Arc):
        ends = f"start{eq}{vector(curve.start)}{c}end{eq}{vector(curve.end)}"
        return f"Arc{place}{a}add_arc({ends}{c}mid{eq}{vector(curve.mid)})"
    return f"Circle{place}{a}add_circle(center{eq}{vector(curve.center)}{c}radius{eq}{layout.scalar(curve.radius)})"


def plane_statement(i: int, plane: AbsolutePlane | RelativePlane, layout: Layout) -> str:
    """The statement of the sketch plane of extrude `i`."""
    a, eq, c, vector = layout.assign, layout.equals, layout.comma, layout.vector
    if isinstance(plane, AbsolutePlane):
        directions = f"normal{eq}{vector(plane.normal)}{c}x_axis{eq}{vector(plane.x_axis)}"
        return f"SketchPlane{i}{a}add_sketchplane({layout.opening}origin{eq}{vector(plane.origin)}{c}{directions})"
    if plane.kind != "line":
        eq = layout.loose_equals
    words = [f"Extrude{plane.extrude}", f"origin{eq}{vector(plane.origin)}", f'type{eq}"{plane.kind}"']
    if plane.line is not None:
        words.append(f"line{eq}Line{plane.extrude}_{plane.line[0]}_{plane.line[1]}")
    angle = layout.angle(plane.angle)
    if angle is not None:
        words.append(f"angle{eq}{angle}")
    if plane.reverse:
        words.append(f"reverse{eq}True")
    return f"SketchPlane{i}{a}add_sketchplane_ref({layout.opening}{c.join(words)})"
