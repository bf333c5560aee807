"""Words of a statement: numbers, names, strings and marks, with their places."""

from __future__ import annotations

import re
from typing import NamedTuple

from mm.cad.limits import MAX_DEPTH

_TOKEN = re.compile(
    r"""(?P<blank>[ \t\r\n]+|\#[^\n]*)
    |(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<string>"[^"'\\\n]*"|'[^"'\\\n]*')
    |(?P<mark>[\[\]()=,.+\-*/])
    |(?P<bad>.)""",
    re.VERBOSE | re.DOTALL,
)


class SyntaxProblem(Exception):
    """Raised inside the parser; `offset` counts characters from the start of the statement.

    `name` is the name that could not be found, if that is the problem.
    """

    def __init__(self, code: str, message: str, offset: int, name: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.offset, self.name = code, message, offset, name


class Token(NamedTuple):
    """One word."""

    kind: str
    """number, name, string, mark, or end."""
    text: str
    offset: int
    """Characters from the start of the statement."""


def tokenize(statement: str) -> list[Token]:
    """Split one statement into words; blanks and comments are left out, an end token is added.

    Example:
        >>> [token.text for token in tokenize("a = [.5, -2.]  # half")]
        ['a', '=', '[', '.5', ',', '-', '2.', ']', '']

    Raises:
        SyntaxProblem: too-deep, bad-character, or unterminated for a string without its end.
    """
    _check_depth(statement)
    tokens = []
    for match in _TOKEN.finditer(statement):
        kind = match.lastgroup
        if kind == "blank":
            continue
        if kind == "bad":
            raise _bad_character(match.group(), match.start())
        tokens.append(Token(kind or "", match.group(), match.start()))
    tokens.append(Token("end", "", len(statement)))
    return tokens


def _check_depth(statement: str) -> None:
    if statement.count("[") + statement.count("(") <= MAX_DEPTH:
        return
    depth = 0
    for match in re.finditer(r"[\[\]()]", statement):
        depth += 1 if match.group() in "[(" else -1
        if depth > MAX_DEPTH:
            raise SyntaxProblem("too-deep", f"brackets are nested more than {MAX_DEPTH} deep", match.start())


def _bad_character(character: str, offset: int) -> SyntaxProblem:
    if character in "\"'":
        return SyntaxProblem("unterminated", "a string must close with the same quote on its line", offset)
    shown = character if character.isprintable() and character.isascii() else f"U+{ord(character):04X}"
    return SyntaxProblem("bad-character", f"{shown} is no part of the language", offset)
