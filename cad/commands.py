"""The commands of the language: names, arguments, their order, kinds and allowed values.

Source: OpenECAD version 2; `y_axis` of `add_sketchplane` is version 1.
"""

from __future__ import annotations

from typing import NamedTuple


class Argument(NamedTuple):
    """One argument of a command."""

    name: str
    kind: str
    """vec2, vec3, number, integer, name, string or flag."""
    default: object = ...
    """... = must be given."""


COMMANDS: dict[str, tuple[Argument, ...]] = {
    "add_line": (Argument("start", "vec2"), Argument("end", "vec2")),
    "add_arc": (Argument("start", "vec2"), Argument("end", "vec2"), Argument("mid", "vec2")),
    "add_circle": (Argument("center", "vec2"), Argument("radius", "number")),
    "add_loop": (Argument("curves", "name"),),
    "add_profile": (Argument("loops", "name"),),
    "add_sketchplane": (
        Argument("origin", "vec3"),
        Argument("normal", "vec3"),
        Argument("x_axis", "vec3"),
        Argument("y_axis", "vec3", None),
    ),
    "add_sketchplane_ref": (
        Argument("extrude", "name"),
        Argument("origin", "vec2"),
        Argument("type", "string"),
        Argument("line", "name", None),
        Argument("reverse", "flag", False),
        Argument("angle", "number", 0.0),
    ),
    "add_sketch": (
        Argument("sketch_plane", "name"),
        Argument("profile", "name"),
        Argument("sketch_position", "vec3", (0.0, 0.0, 0.0)),
        Argument("sketch_size", "number", 0.0),
    ),
    "add_extrude": (
        Argument("sketch", "name"),
        Argument("operation", "integer"),
        Argument("type", "integer"),
        Argument("extent_one", "number"),
        Argument("extent_two", "number"),
    ),
}

POSITION = {command: {argument.name: i for i, argument in enumerate(row)} for command, row in COMMANDS.items()}
"""Command -> argument name -> place."""

OPERATIONS = (0, 1, 2, 3)
EXTENT_TYPES = (0, 1, 2)
PLANE_KINDS = ("sameplane", "extent_one", "extent_two", "line")
PLANE_ALIASES = {"sameplan": "sameplane"}

RESERVED = frozenset({*COMMANDS, "True", "False", "None", "np", "math", "pi", "import", "from", "append"})
"""Words that cannot be given to a variable."""
