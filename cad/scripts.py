"""Programs as scripts of other CAD systems: CadQuery, build123d, FreeCAD, OpenSCAD.

Planes are resolved and loops made canonical first, so that the scripts carry plain geometry in millimetres: every
extrude is one prism over its whole span, joined to, cut from or intersected with what stands so far (the first is the
body). OpenSCAD has no arcs: they become chords.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

from mm.cad.curves import polyline
from mm.cad.loops import CanonicalLoop, canonical_profile
from mm.cad.number_text import short_number
from mm.cad.planes import Frame, resolve_planes
from mm.cad.program import Arc, Circle, Line, Operation, Program, Vec2, Vec3

System = Literal["cadquery", "build123d", "freecad", "openscad"]
_DECIMALS = 9


class Prism(NamedTuple):
    """One extrude, ready to be written."""

    frame: Frame
    loops: tuple[CanonicalLoop, ...]
    low: float
    height: float
    operation: int


def export_text(program: Program, system: System, *, chord_angle: float = math.pi / 36) -> str:
    """Write a program as a script.

    Args:
        program: A program that `validate` accepts.
        system: "cadquery", "build123d", "freecad" or "openscad".
        chord_angle: OpenSCAD only: largest angle of a chord of an arc or circle, radians.

    Returns:
        The script; the last line leaves the part in `result` (Python) or draws it (OpenSCAD).

    Raises:
        ValueError: an unknown system, or a loop that cannot be closed.

    Example:
        >>> from mm.cad import parse
        >>> from mm.cad.examples import PLATE
        >>> print(export_text(parse(PLATE), "cadquery"))  # doctest: +ELLIPSIS
        import cadquery as cq
        ...
    """
    writers: dict[str, Callable[[list[Prism]], list[str]]] = {
        "cadquery": _cadquery,
        "build123d": _build123d,
        "freecad": _freecad,
        "openscad": lambda prisms: _openscad(prisms, chord_angle),
    }
    if system not in writers:
        raise ValueError(f"system must be one of {', '.join(writers)}, got {system!r}")
    frames = resolve_planes(program)
    prisms = [
        Prism(frame, canonical_profile(extrude).loops, extrude.span[0], extrude.span[1] - extrude.span[0], operation)
        for extrude, frame in zip(program.extrudes, frames, strict=True)
        for operation in [int(extrude.operation)]
    ]
    return "\n".join(writers[system](prisms)) + "\n"


def _n(value: float) -> str:
    return short_number(value, _DECIMALS)


def _tuple(values: Vec2 | Vec3) -> str:
    return f"({', '.join(_n(value) for value in values)})"


def _combined(index: int, operation: int, join: str, cut: str, intersect: str) -> str:
    """The line that adds prism `index` to the result."""
    if index == 0:
        return "result = prism0"
    method = {Operation.CUT: cut, Operation.INTERSECT: intersect}.get(Operation(operation), join)
    return f"result = {method.format(f'prism{index}')}"


# CadQuery ------------------------------------------------------------------------------------------------------


def _cadquery(prisms: list[Prism]) -> list[str]:
    lines = ["import cadquery as cq", ""]
    for i, prism in enumerate(prisms):
        frame = prism.frame
        plane = f"origin={_tuple(frame.origin)}, xDir={_tuple(frame.x_axis)}, normal={_tuple(frame.normal)}"
        lines.append(f"plane{i} = cq.Plane({plane})")
        lines.append(f"prism{i} = (")
        lines.append(f"    cq.Workplane(plane{i}).workplane(offset={_n(prism.low)})")
        for loop in prism.loops:
            lines += [f"    {step}" for step in _cadquery_loop(loop)]
        lines += [f"    .extrude({_n(prism.height)})", ")"]
        lines.append(_combined(i, prism.operation, "result.union({})", "result.cut({})", "result.intersect({})"))
    return lines


def _cadquery_loop(loop: CanonicalLoop) -> list[str]:
    first = loop.curves[0]
    if isinstance(first, Circle):
        return [f".moveTo{_tuple(first.center)}.circle({_n(abs(first.radius))})"]
    steps = [f".moveTo{_tuple(first.start)}"]
    for curve in loop.curves:
        if isinstance(curve, Line):
            steps.append(f".lineTo{_tuple(curve.end)}")
        elif isinstance(curve, Arc):
            steps.append(f".threePointArc({_tuple(curve.mid)}, {_tuple(curve.end)})")
    return [*steps, ".close()"]


# build123d -----------------------------------------------------------------------------------------------------


def _build123d(prisms: list[Prism]) -> list[str]:
    lines = ["from build123d import Edge, Face, Location, Plane, Solid, Wire", ""]
    for i, prism in enumerate(prisms):
        frame = prism.frame
        plane = f"origin={_tuple(frame.origin)}, x_dir={_tuple(frame.x_axis)}, z_dir={_tuple(frame.normal)}"
        lines.append(f"plane{i} = Plane({plane})")
        wires = [_build123d_wire(loop) for loop in prism.loops]
        holes = "".join(f"\n        {wire}," for wire in wires[1:])
        lines.append(f"face{i} = Face(\n    {wires[0]},\n    [{holes}\n    ],\n)")
        lines.append(f"face{i} = face{i}.moved(plane{i}.location * Location((0, 0, {_n(prism.low)})))")
        lines.append(f"prism{i} = Solid.extrude(face{i}, plane{i}.z_dir * {_n(prism.height)})")
        lines.append(_combined(i, prism.operation, "result + {}", "result - {}", "result & {}"))
    return lines


def _build123d_wire(loop: CanonicalLoop) -> str:
    edges = []
    for curve in loop.curves:
        if isinstance(curve, Line):
            edges.append(f"Edge.make_line({_tuple(curve.start)}, {_tuple(curve.end)})")
        elif isinstance(curve, Arc):
            points = ", ".join(_tuple(point) for point in (curve.start, curve.mid, curve.end))
            edges.append(f"Edge.make_three_point_arc({points})")
        else:
            edges.append(f"Edge.make_circle({_n(abs(curve.radius))}, Plane({_tuple((*curve.center, 0.0))}))")
    return f"Wire([{', '.join(edges)}])"


# FreeCAD -------------------------------------------------------------------------------------------------------


def _freecad(prisms: list[Prism]) -> list[str]:
    lines = ["import FreeCAD as App", "import Part", "", "V = App.Vector"]
    for i, prism in enumerate(prisms):
        frame = prism.frame
        rows = zip(frame.x_axis, frame.y_axis, frame.normal, frame.point((0.0, 0.0), prism.low), strict=True)
        matrix = ", ".join(_n(value) for row in rows for value in row)
        wires = ", ".join(_freecad_wire(loop) for loop in prism.loops)
        lines.append(f"face{i} = Part.Face([{wires}])")
        lines.append(f"prism{i} = face{i}.extrude(V(0, 0, {_n(prism.height)}))")
        lines.append(f"prism{i}.Placement = App.Placement(App.Matrix({matrix}, 0, 0, 0, 1))")
        lines.append(_combined(i, prism.operation, "result.fuse({})", "result.cut({})", "result.common({})"))
    return [*lines, "Part.show(result)"]


def _freecad_wire(loop: CanonicalLoop) -> str:
    def vector(point: Vec2) -> str:
        return f"V({_n(point[0])}, {_n(point[1])}, 0)"

    edges = []
    for curve in loop.curves:
        if isinstance(curve, Line):
            edges.append(f"Part.LineSegment({vector(curve.start)}, {vector(curve.end)}).toShape()")
        elif isinstance(curve, Arc):
            edges.append(f"Part.Arc({vector(curve.start)}, {vector(curve.mid)}, {vector(curve.end)}).toShape()")
        else:
            edges.append(f"Part.Circle({vector(curve.center)}, V(0, 0, 1), {_n(abs(curve.radius))}).toShape()")
    return f"Part.Wire([{', '.join(edges)}])"


# OpenSCAD ------------------------------------------------------------------------------------------------------


def _openscad(prisms: list[Prism], chord_angle: float) -> list[str]:
    lines = []
    for i, prism in enumerate(prisms):
        frame = prism.frame
        rows = zip(frame.x_axis, frame.y_axis, frame.normal, frame.origin, strict=True)
        matrix = ", ".join(f"[{', '.join(_n(value) for value in row)}]" for row in rows)
        polygons = [f"polygon([{_openscad_points(loop, chord_angle)}]);" for loop in prism.loops]
        profile = polygons[0] if len(polygons) == 1 else f"difference() {{ {' '.join(polygons)} }}"
        lines.append(f"module prism{i}() multmatrix([{matrix}, [0, 0, 0, 1]])")
        lines.append(f"  translate([0, 0, {_n(prism.low)}]) linear_extrude(height={_n(prism.height)}) {profile}")
    lines.append("module step0() prism0();")
    words = {Operation.CUT: "difference", Operation.INTERSECT: "intersection"}
    for i, prism in enumerate(prisms[1:], 1):
        word = words.get(Operation(prism.operation), "union")
        lines.append(f"module step{i}() {word}() {{ step{i - 1}(); prism{i}(); }}")
    return [*lines, f"step{len(prisms) - 1}();"]


def _openscad_points(loop: CanonicalLoop, chord_angle: float) -> str:
    points = [point for curve in loop.curves for point in polyline(curve, chord_angle)]
    return ", ".join(f"[{_n(x)}, {_n(y)}]" for x, y in points)
