"""From a picture to an editable CAD program. Import as `mm.cad`.

    program = parse(text)                       # data only, never executed
    emit(program, style="official")             # back to text
    resolve_planes(program)                     # one frame per extrude

Names are imported when they are first used: the language needs neither torch nor a CAD kernel.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "Arc": "program",
    "Circle": "program",
    "Extrude": "program",
    "Line": "program",
    "Loop": "program",
    "Program": "program",
    "ProgramError": "errors",
    "BuildError": "kernel",
    "Limits": "kernel",
    "Solid": "kernel",
    "build": "kernel",
    "canonical_profile": "loops",
    "edit": "editing",
    "emit": "emitter",
    "export_text": "scripts",
    "from_deepcad": "deepcad",
    "hidden_line_svg": "drawing",
    "load_solid": "kernel",
    "load_program": "files",
    "parse": "parser",
    "render": "drawing",
    "resolve_planes": "planes",
    "score": "metrics",
    "to_deepcad": "deepcad",
    "validate": "validation",
}
"""Public name -> module of this package; a module must not carry the name of a function listed here."""

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"mm.cad.{_HOME[name]}"), name)
    raise AttributeError(f"module 'mm.cad' has no attribute {name!r}")
