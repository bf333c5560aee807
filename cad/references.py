"""Choosing the statement of a sketch plane: relative to an earlier extrude where one fits, else absolute.

official   The rule of the published converter: extrudes in building order, sketch plane before upper before lower face
           before side faces, first match wins, tolerance 1e-10. A face is found only straight above the old origin.
improved   All earlier extrudes and faces, any origin on them, signed extents, tolerances relative to the size of the
           part; the nearest origin wins, then the most recent extrude. The numbers as they will be printed (4 decimals)
           must lead to the same plane, else the plane stays absolute: errors of a chain of references add up.

Deviation: in exact frames the official rule compares signed extents; the published converter takes |extent_one| and
names the wrong side of a negative extrude (defect D4). `legacy=True` repeats it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

from mm.cad.deepcad_json import Feature
from mm.cad.errors import ProgramError
from mm.cad.loops import canonical_loop
from mm.cad.number_text import rounded
from mm.cad.planes import Frame, relative_frame
from mm.cad.program import AbsolutePlane, Arc, Circle, Curve, Extrude, Line, Loop, Plane, RelativePlane, Vec3
from mm.cad.vectors import add, cross, dot, norm, scaled, sub

_EXACT = 1e-10
"""Tolerance of the official rule."""
_RELATIVE = 1e-6
"""Tolerance of the improved rule, as a share of the part's size."""
_PRINTED_ORIGIN = 1e-3
"""Largest move of an origin by printing, mm."""
_PRINTED_AXIS = 2e-4
"""Largest change of a direction by printing."""


def absolute_plane(frame: Frame) -> AbsolutePlane:
    """The statement that names a frame in space."""
    return AbsolutePlane(frame.origin, frame.normal, frame.x_axis)


def official_plane(features: list[Feature], index: int, *, legacy: bool = False) -> Plane:
    """The plane statement of feature `index` by the published rule."""
    target = features[index].frame
    for candidate in range(index):
        for found in _official_matches(features, candidate, target, legacy):
            return found
    return absolute_plane(target)


def _official_matches(features: list[Feature], k: int, target: Frame, legacy: bool) -> Iterator[RelativePlane]:
    feature = features[k]
    base = feature.frame
    offset = sub(target.origin, base.origin)
    if norm(cross(target.normal, base.normal)) < _EXACT:
        height, aside = dot(offset, base.normal), norm(cross(offset, base.normal))
        one = abs(feature.extent_one) if legacy else feature.extent_one
        two = abs(feature.extent_two) if legacy else feature.extent_two
        if abs(height) < _EXACT:
            yield _on_face(k, "sameplane", base, target, base.origin)
        elif aside < _EXACT * max(1.0, abs(height)) and height > 0 and abs(height - one) < _EXACT:
            yield _on_face(k, "extent_one", base, target, add(base.origin, base.normal, one))
        elif aside < _EXACT * max(1.0, abs(height)) and height < 0 and abs(height + two) < _EXACT:
            yield _on_face(k, "extent_two", base, target, add(base.origin, base.normal, -two))
    elif dot(target.normal, base.normal) <= _EXACT:
        for place, line in _lines(feature):
            side = _side(base, line)
            aside = abs(dot(sub(target.origin, side.origin), side.normal))
            if norm(cross(target.normal, side.normal)) < _EXACT and aside < _EXACT:
                yield _on_face(k, "line", side, target, side.origin, place)


def improved_plane(features: list[Feature], index: int, printed: list[tuple[Extrude, Frame]], size: float) -> Plane:
    """The plane statement of feature `index` by the improved rule.

    Args:
        features: All features, exact.
        index: Which one.
        printed: What earlier statements mean with printed numbers: (extrude, frame) for each.
        size: Extent of the part, mm.
    """
    target = features[index].frame
    slack = _RELATIVE * size
    found = [plane for k in range(index) for plane in _matches(features[k], k, target, slack)]

    def distance(plane: RelativePlane) -> tuple[float, int]:
        return (round(math.hypot(*plane.origin) / max(size, 1e-9), 4), -plane.extrude)

    for plane in sorted(found, key=distance):
        meant = relative_frame(printed_reference(plane), *printed[plane.extrude])
        if same_frame(meant, target, _PRINTED_ORIGIN, _PRINTED_AXIS):
            return plane
    return absolute_plane(target)


def _matches(feature: Feature, k: int, target: Frame, slack: float) -> Iterator[RelativePlane]:
    base = feature.frame
    if norm(cross(target.normal, base.normal)) < _RELATIVE:
        height = dot(sub(target.origin, base.origin), base.normal)
        faces = {"sameplane": 0.0, "extent_one": feature.extent_one, "extent_two": -feature.extent_two}
        for kind, level in faces.items():
            if abs(height - level) <= slack and (kind == "sameplane" or level != 0.0):
                yield _on_face(k, kind, base, target, add(base.origin, base.normal, level))
    elif abs(dot(target.normal, base.normal)) < _RELATIVE:
        for place, line in _lines(feature):
            side = _side(base, line)
            aside = abs(dot(sub(target.origin, side.origin), side.normal))
            if norm(cross(target.normal, side.normal)) < _RELATIVE and aside <= slack:
                yield _on_face(k, "line", side, target, side.origin, place)


def _lines(feature: Feature) -> Iterator[tuple[tuple[int, int], Line]]:
    """All lines with their place in the text and canonical direction."""
    for j, loop in enumerate(feature.loops):
        try:
            canonical = canonical_loop(loop)
        except ProgramError:  # a loop that does not close has no sides; the part is judged elsewhere
            continue
        for place, curve in sorted(zip(canonical.order, canonical.curves, strict=True), key=lambda pair: pair[0]):
            if isinstance(curve, Line):
                yield (j, place), curve


def _side(base: Frame, line: Line) -> Frame:
    """Frame of the side face over a line: x along it, y = the extrude direction of the feature, origin at its start."""
    start, end = base.point(line.start), base.point(line.end)
    along = sub(end, start)
    x = scaled(along, 1.0 / norm(along))
    return Frame(start, cross(x, base.normal), x, base.normal)


def _on_face(
    k: int, kind: str, face: Frame, target: Frame, origin: Vec3, line: tuple[int, int] | None = None
) -> RelativePlane:
    """The reference that turns a face (any frame with its normal) into the target."""
    offset = sub(target.origin, origin)
    sine, cosine = dot(cross(face.x_axis, target.x_axis), face.normal), dot(face.x_axis, target.x_axis)
    a, b = _coordinates(offset, face.x_axis, face.y_axis)
    reverse = dot(face.normal, target.normal) < 0
    return RelativePlane(k, (a, b), kind, line, reverse, math.atan2(sine, cosine))  # type: ignore[arg-type]


def _coordinates(offset: Vec3, x: Vec3, y: Vec3) -> tuple[float, float]:
    """Least squares for a x + b y = offset (legacy frames need not be orthogonal).

    In exact arithmetic: the sign of a coordinate of 1e-40 is printed as "0." or "-0.".
    """
    (o0, o1, o2), (x0, x1, x2), (y0, y1, y2) = (map(Fraction, vector) for vector in (offset, x, y))
    ox, oy = o0 * x0 + o1 * x1 + o2 * x2, o0 * y0 + o1 * y1 + o2 * y2
    xx, yy, xy = x0 * x0 + x1 * x1 + x2 * x2, y0 * y0 + y1 * y1 + y2 * y2, x0 * y0 + x1 * y1 + x2 * y2
    determinant = xx * yy - xy * xy
    return _signed((yy * ox - xy * oy) / determinant), _signed((xx * oy - xy * ox) / determinant)


def _signed(value: Fraction) -> float:
    return float(value) or (-0.0 if value < 0 else 0.0)


# printed numbers -----------------------------------------------------------------------------------------------


def as_printed(plane: Plane) -> Plane:
    """A plane with its numbers as official text has them: lengths to 4 decimals, angles to 6."""
    if isinstance(plane, AbsolutePlane):
        return AbsolutePlane(_printed(plane.origin), _printed(plane.normal), _printed(plane.x_axis))
    return printed_reference(plane)


def printed_reference(plane: RelativePlane) -> RelativePlane:
    """A reference with its numbers as official text has them."""
    return replace(plane, origin=_printed(plane.origin), angle=rounded(plane.angle, 6))


def printed_extrude(feature: Feature, plane: Plane) -> Extrude:
    """A feature with its numbers as official text has them."""
    loops = tuple(Loop(tuple(_printed_curve(curve) for curve in loop.curves)) for loop in feature.loops)
    one, two = rounded(feature.extent_one), rounded(feature.extent_two)
    return Extrude(as_printed(plane), loops, feature.operation, feature.extent_type, one, two)


def _printed(vector: tuple) -> tuple:
    return tuple(rounded(value) for value in vector)


def _printed_curve(curve: Curve) -> Curve:
    if isinstance(curve, Circle):
        return Circle(_printed(curve.center), rounded(curve.radius))
    start, end = _printed(curve.start), _printed(curve.end)
    return Arc(start, end, _printed(curve.mid)) if isinstance(curve, Arc) else Line(start, end)


def same_frame(a: Frame, b: Frame, origin: float, axis: float) -> bool:
    """Whether two frames agree: origins within `origin` mm, directions within `axis`."""
    pairs = ((a.normal, b.normal), (a.x_axis, b.x_axis), (a.y_axis, b.y_axis))
    return norm(sub(a.origin, b.origin)) <= origin and all(norm(sub(p, q)) <= axis for p, q in pairs)
