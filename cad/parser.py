"""Text -> program, as data: nothing in the text is ever executed."""

from __future__ import annotations

from mm.cad.program import Program


def parse(text: str, *, recover: bool = False) -> Program:
    """Read a program."""
    raise NotImplementedError
