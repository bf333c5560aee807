"""The text behind a program: which part of it is code, and where its statements stand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from mm.cad.statement import Statement

_CHUNK = re.compile(r"[^\n]+(?:\n++[ \t][^\n]*)*")
"""A statement: a line, and the lines after it that begin with a blank."""
_FENCE = re.compile(r"^[ \t]*```[^\n]*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Placed:
    """A statement and its place."""

    start: int
    """Characters from the start of the text."""
    end: int
    statement: Statement


@dataclass(frozen=True, slots=True)
class Source:
    """The text a program was parsed from."""

    text: str
    """As it was given, with fence and prose."""
    start: int
    """Where the code begins, characters."""
    end: int
    """Where it ends."""
    statements: tuple[Placed, ...]


def code_span(text: str) -> tuple[int, int]:
    """(start, end) of the code in an answer: inside the first fence, to its end or to the end of the text; else all.

    Example:
        >>> text = "Here it is:\\n```python\\na = []\\n```\\nEnjoy."
        >>> start, end = code_span(text)
        >>> text[start:end]
        'a = []\\n'
    """
    opening = _FENCE.search(text)
    if opening is None:
        return (1 if text.startswith("\ufeff") else 0), len(text)
    start = min(opening.end() + 1, len(text))
    closing = _FENCE.search(text, start)
    return start, closing.start() if closing else len(text)


def chunks(text: str, start: int, end: int) -> Iterator[re.Match[str]]:
    """The logical lines of the code: a line with its continuation lines."""
    return _CHUNK.finditer(text, start, end)


def position(text: str, offset: int) -> tuple[int, int]:
    """Line and column (from 1) of a character.

    Example:
        >>> position("ab\\ncd", 4)
        (2, 2)
    """
    before = text[:offset]
    return before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1
