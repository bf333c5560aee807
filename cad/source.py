"""Where the features of a program stand in its text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Source:
    """The text behind a program."""

    text: str
    """The program text as it was given (with fence and prose)."""
