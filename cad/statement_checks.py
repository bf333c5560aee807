"""Values of a statement that can be judged without knowing what its names stand for."""

from __future__ import annotations

from mm.cad.commands import EXTENT_TYPES, OPERATIONS, PLANE_ALIASES, PLANE_KINDS
from mm.cad.planes import PlaneError, orthonormal
from mm.cad.program import Arc, Circle, Line
from mm.cad.statement import Statement
from mm.cad.tokens import SyntaxProblem


def checked_call(statement: Statement) -> Statement:
    """Check the values of a call and make its curve."""
    check = _CHECKS.get(statement.kind)
    return check(statement) if check else statement


def _line(statement: Statement) -> Statement:
    start, end = statement.values
    return statement._replace(curve=Line(start, end))


def _arc(statement: Statement) -> Statement:
    start, end, mid = statement.values
    if start == end or mid in (start, end):
        raise SyntaxProblem("degenerate-curve", "start, end and mid of an arc must differ", statement.offsets[0])
    return statement._replace(curve=Arc(start, end, mid))


def _circle(statement: Statement) -> Statement:
    center, radius = statement.values
    if radius == 0:
        raise SyntaxProblem("degenerate-curve", "the radius of a circle must not be 0", statement.offsets[1])
    return statement._replace(curve=Circle(center, radius))


def _plane(statement: Statement) -> Statement:
    _, normal, x_axis, y_axis = statement.values
    if y_axis is None:
        try:
            orthonormal(normal, x_axis)
        except PlaneError as error:
            raise SyntaxProblem("degenerate-plane", str(error), statement.offsets[1]) from None
    return statement


def _plane_ref(statement: Statement) -> Statement:
    kind = PLANE_ALIASES.get(statement.values[2], statement.values[2])
    if kind not in PLANE_KINDS:
        found, allowed = statement.values[2][:40], ", ".join(PLANE_KINDS)
        raise SyntaxProblem(
            "bad-value", f"the plane type must be one of {allowed}, found {found}", statement.offsets[2]
        )
    if kind == "line" and statement.values[3] is None:
        raise SyntaxProblem("missing-line", "a plane of type line needs line=", statement.offsets[2])
    return statement


def _extrude(statement: Statement) -> Statement:
    sketch, operation, extent_type, one, two = statement.values
    if operation not in OPERATIONS:
        raise SyntaxProblem("bad-value", f"operation must be 0, 1, 2 or 3, found {operation:g}", statement.offsets[1])
    if extent_type not in EXTENT_TYPES:
        raise SyntaxProblem("bad-value", f"type must be 0, 1 or 2, found {extent_type:g}", statement.offsets[2])
    if one == 0 and not (extent_type == 2 and two != 0):
        raise SyntaxProblem("zero-extent", "the extrude has no height", statement.offsets[3])
    if extent_type == 2 and max(0.0, one, -two) == min(0.0, one, -two):
        raise SyntaxProblem("zero-extent", "the extrude has no height", statement.offsets[3])
    return statement._replace(values=(sketch, int(operation), int(extent_type), one, two))


_CHECKS = {
    "add_line": _line,
    "add_arc": _arc,
    "add_circle": _circle,
    "add_sketchplane": _plane,
    "add_sketchplane_ref": _plane_ref,
    "add_extrude": _extrude,
}
