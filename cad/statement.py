"""A checked statement, as the parser sees it."""

from __future__ import annotations

from typing import Any, NamedTuple

from mm.cad.program import Curve


class Name(NamedTuple):
    """A name used as an argument."""

    text: str
    offset: int


class Statement(NamedTuple):
    """A checked statement."""

    kind: str
    """list, append, number, or the name of a command."""
    targets: tuple[Name, ...]
    """What it defines; for an append: the list."""
    values: tuple[Any, ...] = ()
    """Arguments in the order of `COMMANDS`: floats, tuples, bool, str, None, `Name`; Formula while unknown."""
    offsets: tuple[int, ...] = ()
    """Place of each value in the statement (of the command where an argument is left out)."""
    curve: Curve | None = None
    """The curve that add_line, add_arc or add_circle makes."""
    open: bool = False
    """Some value is a Formula: `bind` it first."""
