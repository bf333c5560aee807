"""DeepCAD data -> program and back: JSON documents and 17-column vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from mm.cad.deepcad_json import Feature, read_features, write_document
from mm.cad.errors import Notice
from mm.cad.legacy_frames import stored_frame
from mm.cad.part_box import part_box
from mm.cad.planes import Frame, relative_frame
from mm.cad.program import AbsolutePlane, Extrude, Plane, Program
from mm.cad.references import absolute_plane, improved_plane, official_plane, printed_extrude, same_frame

References = Literal["official", "improved"]

_STORAGE = 1e-5
"""Change of a direction by storage that is rounding: a fifth of what 4 decimals lose."""


def from_deepcad(
    data: Mapping[str, Any] | Any,
    references: References = "official",
    frames: Literal["exact", "legacy"] = "exact",
) -> Program:
    """Convert DeepCAD data to a program, in millimetres and full precision.

    Args:
        data: A JSON document (a dict, metres) or a vector (n, 17) of integers, whose unit-cube scale is kept.
        references: How sketch planes are tied to earlier extrudes; see `mm.cad.references`.
        frames: "legacy" repeats the wrong frames of the published converter (official references only).

    Returns:
        The program. Improved references keep the input exactly; official ones follow the published storage of frames,
        which turns oblique planes by up to 1e-5 rad.

    Raises:
        ValueError: the data is incomplete or holds something that the language cannot say.
    """
    if references not in ("official", "improved"):
        raise ValueError(f'references must be "official" or "improved", got {references!r}')
    if frames not in ("exact", "legacy"):
        raise ValueError(f'frames must be "exact" or "legacy", got {frames!r}')
    if frames == "legacy" and references != "official":
        raise ValueError('frames="legacy" reproduces released data and needs references="official"')
    if isinstance(data, Mapping):
        features, notices = read_features(data)
        if references == "official":
            features = [_with_frame(feature, _stored(feature.frame, frames)) for feature in features]
    else:
        from mm.cad.deepcad_vector import read_vector

        features, notices = read_vector(data), []
    if frames == "legacy":
        notices.append(Notice("legacy-frames", "frames carry the defects of the published converter"))
    return Program(tuple(_tied(features, references, frames == "legacy")), tuple(notices))


def _stored(frame: Frame, frames: str) -> Frame:
    """The frame after the published storage as angles: its rounding decides the last printed digits.

    Where that storage is more than rounding (defects D1 and D3), exact mode keeps the true frame.
    """
    try:
        stored = stored_frame(frame.origin, frame.normal, frame.x_axis, frame.y_axis)
    except ValueError:
        if frames == "legacy":
            raise
        return frame
    return stored if frames == "legacy" or same_frame(stored, frame, 0.0, _STORAGE) else frame


def _with_frame(feature: Feature, frame: Frame) -> Feature:
    return Feature(frame, feature.loops, feature.operation, feature.extent_type, feature.extent_one, feature.extent_two)


def _tied(features: list[Feature], references: str, legacy: bool) -> list[Extrude]:
    """Choose the plane statements."""
    size = _size(features) if references == "improved" else 0.0
    printed: list[tuple[Extrude, Frame]] = []
    extrudes = []
    for index, feature in enumerate(features):
        if references == "official":
            plane = official_plane(features, index, legacy=legacy)
        else:
            plane = improved_plane(features, index, printed, size)
            printed.append(_printed(feature, plane, printed))
        extrudes.append(_extrude(feature, plane))
    return extrudes


def _extrude(feature: Feature, plane: Plane) -> Extrude:
    return Extrude(plane, feature.loops, feature.operation, feature.extent_type, feature.extent_one, feature.extent_two)


def _printed(feature: Feature, plane: Plane, printed: list[tuple[Extrude, Frame]]) -> tuple[Extrude, Frame]:
    from mm.cad.planes import orthonormal

    extrude = printed_extrude(feature, plane)
    rough = extrude.plane
    if isinstance(rough, AbsolutePlane):
        return extrude, Frame(rough.origin, *orthonormal(rough.normal, rough.x_axis))
    return extrude, relative_frame(rough, *printed[rough.extrude])


def _size(features: list[Feature]) -> float:
    program = Program(tuple(_extrude(feature, absolute_plane(feature.frame)) for feature in features))
    low, high = part_box(program)
    return max(b - a for a, b in zip(low, high, strict=True))


def to_deepcad(
    program: Program,
    format: Literal["json", "vector"] = "json",
    *,
    scale: float | Literal["keep"] | None = None,
) -> Any:
    """Convert a program to DeepCAD data.

    Args:
        program: Any program that `validate` accepts.
        format: "json" for a document in metres, "vector" for 256 levels.
        scale: Vector only: factor from millimetres to the unit cube; None = 0.75 / largest coordinate of the part;
            "keep" for a program that came from a vector: its scale and its grid are those of the vector, and the same
            levels come back.

    Returns:
        A dict, or an integer array (n, 17).

    Raises:
        ValueError: a vector has no room for the part (10 extrudes, 6 loops, 14 curves per loop, 60 rows).
    """
    if format == "json":
        return write_document(program)
    if format != "vector":
        raise ValueError(f'format must be "json" or "vector", got {format!r}')
    from mm.cad.deepcad_vector import write_vector

    return write_vector(program, scale)
