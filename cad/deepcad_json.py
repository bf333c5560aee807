"""DeepCAD JSON: sketches and extrude features of Onshape parts, in metres.

    entities    id -> Sketch (transform, profiles) or ExtrudeFeature (profiles, operation, extents)
    sequence    building order
    properties  bounding_box of the part

One OpenECAD extrude per (extrude feature, profile); where a NewBody feature has several profiles the others become
Join. Lengths become millimetres; nothing is normalised or moved.

Source: DeepCAD (Wu et al. 2021); conversion as in OpenECAD version 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mm.cad.curves import arc_circle
from mm.cad.errors import Notice
from mm.cad.loops import arranged, sorted_loops
from mm.cad.part_box import part_box
from mm.cad.planes import Frame, orthonormal, resolve_planes
from mm.cad.program import Arc, Circle, Curve, Line, Loop, Operation, Program, Vec2, Vec3

METRE = 1000.0
"""Millimetres."""
OPERATIONS = ("NewBody", "Join", "Cut", "Intersect")
EXTENT_TYPES = ("OneSide", "Symmetric", "TwoSides")


@dataclass(frozen=True, slots=True)
class Feature:
    """An extrude whose plane is known in space, before a statement for that plane is chosen."""

    frame: Frame
    loops: tuple[Loop, ...]
    operation: int
    extent_type: int
    extent_one: float
    """mm."""
    extent_two: float
    """mm."""


class DeepCadError(ValueError):
    """DeepCAD data that cannot be read."""


def read_features(data: Mapping[str, Any]) -> tuple[list[Feature], list[Notice]]:
    """The extrudes of a DeepCAD document, in building order; loops chained, sorted and counter-clockwise.

    Raises:
        DeepCadError: something is missing or of an unknown kind; the message names its place.
    """
    entities = _get(data, "entities", "the document", Mapping)
    features: list[Feature] = []
    notices: list[Notice] = []
    for step in _get(data, "sequence", "the document", Sequence):
        key = _get(step, "entity", "sequence", str)
        entity = _get(entities, key, "entities", Mapping)
        kind = _get(entity, "type", key, str)
        if kind == "ExtrudeFeature":
            features += _extrude(entity, key, entities, notices)
        elif kind != "Sketch":
            raise DeepCadError(f"{key}: a part may hold sketches and extrudes, found {kind}")
    if not features:
        raise DeepCadError("the document holds no extrude")
    return features, notices


def half_size(data: Mapping[str, Any]) -> float:
    """Largest magnitude of any coordinate of the part's bounding box, mm."""
    box = _get(_get(data, "properties", "the document", Mapping), "bounding_box", "properties", Mapping)
    corners = [_point3(_get(box, name, "bounding_box", Mapping), name) for name in ("max_point", "min_point")]
    return METRE * max(abs(value) for corner in corners for value in corner)


def _extrude(
    entity: Mapping[str, Any], key: str, entities: Mapping[str, Any], notices: list[Notice]
) -> Iterator[Feature]:
    operation = _word(entity, "operation", "FeatureOperation", OPERATIONS, key)
    extent_type = _word(entity, "extent_type", "FeatureExtentType", EXTENT_TYPES, key)
    start = _get(_get(entity, "start_extent", key, Mapping), "type", f"{key}.start_extent", str)
    if start != "ProfilePlaneStartDefinition":
        raise DeepCadError(f"{key}: an extrude must start on its profile plane, found {start}")
    one, two = _extent(entity, "extent_one", key, notices), 0.0
    if extent_type == 2:
        two = _extent(entity, "extent_two", key, notices)
    for number, use in enumerate(_get(entity, "profiles", key, Sequence)):
        sketch_key, profile_key = _get(use, "sketch", key, str), _get(use, "profile", key, str)
        sketch = _get(entities, sketch_key, "entities", Mapping)
        profile = _get(_get(sketch, "profiles", sketch_key, Mapping), profile_key, f"{sketch_key}.profiles", Mapping)
        place = f"{sketch_key}.{profile_key}"
        loops = [_loop(loop, place) for loop in _get(profile, "loops", place, Sequence)]
        if not loops:
            raise DeepCadError(f"{place}: the profile has no loop")
        order = sorted_loops(loops)
        meaning = Operation.JOIN if number and operation == Operation.NEW_BODY else operation
        frame = _frame(_get(sketch, "transform", sketch_key, Mapping), sketch_key)
        yield Feature(frame, tuple(Loop(loops[i]) for i in order), int(meaning), extent_type, one, two)


def _extent(entity: Mapping[str, Any], name: str, key: str, notices: list[Notice]) -> float:
    extent = _get(entity, name, key, Mapping)
    taper = extent.get("taper_angle")
    if isinstance(taper, Mapping) and taper.get("value"):
        notices.append(Notice("ignored-argument", f"{key}: the taper angle of {name} is left out"))
    return METRE * _number(_get(_get(extent, "distance", f"{key}.{name}", Mapping), "value", f"{key}.{name}", float))


def _frame(transform: Mapping[str, Any], key: str) -> Frame:
    origin, x_axis, z_axis = (
        _point3(_get(transform, name, f"{key}.transform", Mapping), f"{key}.transform.{name}")
        for name in ("origin", "x_axis", "z_axis")
    )
    try:
        return Frame((origin[0] * METRE, origin[1] * METRE, origin[2] * METRE), *orthonormal(z_axis, x_axis))
    except ValueError as error:
        raise DeepCadError(f"{key}.transform: {error}") from None


def _loop(loop: Mapping[str, Any], place: str) -> tuple[Curve, ...]:
    curves = [_curve(curve, place) for curve in _get(loop, "profile_curves", place, Sequence)]
    if not curves:
        raise DeepCadError(f"{place}: a loop has no curve")
    return tuple(curve for curve, _ in arranged([(curve, i) for i, curve in enumerate(curves)]))


def _curve(curve: Mapping[str, Any], place: str) -> Curve:
    kind = _get(curve, "type", place, str)

    def point(name: str) -> Vec2:
        x, y, _ = _point3(_get(curve, name, place, Mapping), f"{place}.{name}")
        return (x * METRE, y * METRE)

    if kind == "Line3D":
        return Line(point("start_point"), point("end_point"))
    radius = METRE * _number(_get(curve, "radius", place, float)) if kind in ("Circle3D", "Arc3D") else 0.0
    if kind == "Circle3D":
        return Circle(point("center_point"), radius)
    if kind != "Arc3D":
        raise DeepCadError(f"{place}: a curve must be Line3D, Arc3D or Circle3D, found {kind}")
    middle = (_number(_get(curve, "start_angle", place, float)) + _number(_get(curve, "end_angle", place, float))) / 2
    rx, ry, _ = _point3(_get(curve, "reference_vector", place, Mapping), f"{place}.reference_vector")
    cx, cy = point("center_point")
    c, s = math.cos(middle), math.sin(middle)
    mid = (cx + (c * rx - s * ry) * radius, cy + (s * rx + c * ry) * radius)
    return Arc(point("start_point"), point("end_point"), mid)


# plain data ----------------------------------------------------------------------------------------------------


def _get(data: Any, key: str, place: str, kind: type) -> Any:
    if not isinstance(data, Mapping) or key not in data:
        raise DeepCadError(f"{place} has no {key!r}")
    value = data[key]
    wrong = isinstance(value, str) if kind is Sequence else False
    if kind is float:
        kind = int | float  # type: ignore[assignment]
        wrong = isinstance(value, bool)
    if wrong or not isinstance(value, kind):
        raise DeepCadError(
            f"{place}.{key} is {type(value).__name__}, which is no {getattr(kind, '__name__', 'number')}"
        )
    return value


def _number(value: float) -> float:
    if not math.isfinite(value):
        raise DeepCadError(f"a number must be finite, found {value}")
    return float(value)


def _point3(data: Mapping[str, Any], place: str) -> Vec3:
    x, y, z = (_number(_get(data, name, place, float)) for name in "xyz")
    return (x, y, z)


def _word(entity: Mapping[str, Any], name: str, ending: str, allowed: tuple[str, ...], key: str) -> int:
    found = _get(entity, name, key, str)
    if not found.endswith(ending) or found.removesuffix(ending) not in allowed:
        raise DeepCadError(
            f"{key}: {name} must be one of {', '.join(word + ending for word in allowed)}, found {found}"
        )
    return allowed.index(found.removesuffix(ending))


# writing -------------------------------------------------------------------------------------------------------


def write_document(program: Program) -> dict[str, Any]:
    """A program as a DeepCAD document: one sketch and one extrude feature per extrude, planes absolute."""
    entities: dict[str, Any] = {}
    sequence = []
    for i, (extrude, frame) in enumerate(zip(program.extrudes, resolve_planes(program), strict=True)):
        profile = {"loops": [_loop_data(loop, j == 0) for j, loop in enumerate(extrude.loops)], "properties": {}}
        entities[f"Sketch{i}"] = {
            "type": "Sketch",
            "name": f"Sketch {i}",
            "transform": {
                "origin": _xyz(frame.origin, 1 / METRE),
                "x_axis": _xyz(frame.x_axis),
                "y_axis": _xyz(frame.y_axis),
                "z_axis": _xyz(frame.normal),
            },
            "profiles": {f"Profile{i}": profile},
        }
        entities[f"Extrude{i}"] = {
            "type": "ExtrudeFeature",
            "name": f"Extrude {i}",
            "profiles": [{"profile": f"Profile{i}", "sketch": f"Sketch{i}"}],
            "operation": f"{OPERATIONS[extrude.operation]}FeatureOperation",
            "extent_type": f"{EXTENT_TYPES[extrude.extent_type]}FeatureExtentType",
            "start_extent": {"type": "ProfilePlaneStartDefinition"},
            "extent_one": _extent_data(extrude.extent_one),
            "extent_two": _extent_data(extrude.extent_two),
        }
        sequence += [(f"Sketch{i}", "Sketch"), (f"Extrude{i}", "ExtrudeFeature")]
    low, high = part_box(program)
    return {
        "entities": entities,
        "properties": {
            "bounding_box": {
                "type": "BoundingBox3D",
                "min_point": _xyz(low, 1 / METRE),
                "max_point": _xyz(high, 1 / METRE),
            }
        },
        "sequence": [{"index": n, "type": kind, "entity": key} for n, (key, kind) in enumerate(sequence)],
    }


def _xyz(vector: Sequence[float], factor: float = 1.0) -> dict[str, float]:
    x, y, *rest = vector
    return {"x": x * factor, "y": y * factor, "z": rest[0] * factor if rest else 0.0}


def _extent_data(value: float) -> dict[str, Any]:
    return {"type": "DistanceExtentDefinition", "distance": {"value": value / METRE}, "taper_angle": {"value": 0.0}}


def _loop_data(loop: Loop, outer: bool) -> dict[str, Any]:
    return {"is_outer": outer, "profile_curves": [_curve_data(curve) for curve in loop.curves]}


def _curve_data(curve: Curve) -> dict[str, Any]:
    up = {"x": 0.0, "y": 0.0, "z": 1.0}
    if isinstance(curve, Circle):
        center = _xyz(curve.center, 1 / METRE)
        return {"type": "Circle3D", "center_point": center, "radius": abs(curve.radius) / METRE, "normal": up}
    ends = {"start_point": _xyz(curve.start, 1 / METRE), "end_point": _xyz(curve.end, 1 / METRE)}
    if isinstance(curve, Line):
        return {"type": "Line3D", **ends}
    circle = arc_circle(curve)
    if circle is None:
        raise ValueError(
            f"an arc from {curve.start} to {curve.end} through {curve.mid} has no radius: the points are on a line"
        )
    # DeepCAD arcs run counter-clockwise from the reference vector: a clockwise one is measured from its end.
    begin = circle.start_angle if circle.sweep > 0 else circle.start_angle + circle.sweep
    return {
        "type": "Arc3D",
        **ends,
        "center_point": _xyz(circle.center, 1 / METRE),
        "radius": circle.radius / METRE,
        "normal": up,
        "start_angle": 0.0,
        "end_angle": abs(circle.sweep),
        "reference_vector": _xyz((math.cos(begin), math.sin(begin))),
    }
