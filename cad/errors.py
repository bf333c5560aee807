"""What can be wrong with a CAD program: one error type with a place and a machine-readable code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CODES = {
    # size and shape of the text
    "too-long": "the text is longer than the limit",
    "too-deep": "brackets are nested deeper than the limit",
    "too-many": "more statements, extrudes or curves than the limit",
    "bad-character": "a character that is no part of the language",
    "bad-syntax": "the words are known, their order is not a statement",
    "unterminated": "the text ends inside a statement",
    # numbers
    "non-finite": "a number is infinite, not a number, or divides by zero",
    "out-of-range": "a number is larger than the limit",
    # names
    "unknown-function": "no such command",
    "undefined-name": "a name that is never defined",
    "use-before-def": "a name that is only defined further down",
    "redefined-name": "a name that is defined twice",
    "no-list": "a curve or a loop before a list for it was opened",
    # arguments
    "unknown-argument": "the command has no such argument",
    "repeated-argument": "an argument is given twice",
    "wrong-arity": "too many or too few arguments",
    "bad-type": "an argument of another kind than the command wants",
    "bad-value": "an argument outside its allowed values",
    # meaning
    "repeated-append": "a curve or loop is put into lists twice",
    "empty-loop": "a loop without a curve",
    "empty-profile": "a profile without a loop",
    "missing-line": "a plane of type line without its line",
    "foreign-line": "the line does not belong to the extrude that the plane refers to",
    "no-extrude": "the program builds nothing",
    "degenerate-plane": "normal or x axis is zero, or both are parallel",
    "degenerate-curve": "a line, an arc or a circle without size",
    "zero-extent": "the extrude has no height",
    # geometry (found by `validate`, not by `parse`)
    "mixed-loop": "a full circle together with other curves in one loop",
    "open-loop": "the ends of the curves do not meet",
    "flat-loop": "the loop encloses no area",
    "self-intersecting": "the boundary of a profile crosses itself",
    "loop-outside": "a hole that is not inside the boundary",
    "loop-order": "the first loop of the profile is not its boundary",
    # notices: accepted, but said
    "ignored-import": "an import line has no effect",
    "ignored-argument": "an argument that this version of the language does not use",
    "alias": "another spelling of a known word",
    "unused": "a statement that no extrude uses",
    "version-1": "text of version 1, converted",
    "snapped": "ends of neighbouring curves that nearly met were joined",
    "truncated": "the incomplete end of the text was left out",
    "legacy-frames": "frames with the defects of the published converter",
}
"""Every code an error, a finding or a notice can carry, and what it means."""


class ProgramError(ValueError):
    """A text or a program that is not accepted.

    Args:
        code: One of `CODES`.
        message: What was found, what is allowed, how to mend it.
        line: Line in the text, from 1; None when the program has no text.
        column: Column in that line, from 1.
    """

    def __init__(self, code: str, message: str, line: int | None = None, column: int | None = None) -> None:
        self.code, self.message, self.line, self.column = code, message, line, column
        place = f"line {line}, column {column}: " if line is not None else ""
        super().__init__(f"{place}{message} [{code}]")

    def __reduce__(self) -> tuple:  # errors cross process borders
        return type(self), (self.code, self.message, self.line, self.column)


@dataclass(frozen=True, slots=True)
class Notice:
    """Something worth knowing about an accepted program."""

    code: str
    message: str
    line: int | None = None
    """From 1; None when it has no place in a text."""
    column: int | None = None
    severity: Literal["warning", "error"] = "warning"
    """"error" only in what `validate` returns: the program cannot be built as it stands."""
    extrude: int | None = None
    """Index of the extrude it is about."""

    def __str__(self) -> str:
        place = f"line {self.line}, column {self.column}: " if self.line is not None else ""
        return f"{self.severity}: {place}{self.message} [{self.code}]"
