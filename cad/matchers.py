"""Pieces of a program text that can be checked while they are being written, character by character."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from mm.cad.number_text import FRACTIONS, angle_text

Rule = Callable[[float], bool]

_LENGTH = re.compile(r" {0,9}(?:-?(?:[0-9]{1,6}(?:\.(?:[0-9]{0,4}|[0-9]{0,4} {1,6})?)?)?)?")
_LENGTH_DONE = re.compile(r" {0,9}-?[0-9]{1,6}(?:\.[0-9]{0,4} {0,6})?")
_SCIENTIFIC = re.compile(r" {0,9}-?[0-9](?:\.[0-9]{0,8}(?:e(?:[+-](?:0[0-5]?)?)?)?)?")
_SCIENTIFIC_DONE = re.compile(r" {0,9}-?[0-9]\.[0-9]{0,8}e[+-]0[0-5]")
_AXIS = re.compile(r" {0,9}(?:-?(?:[0-9](?:\.(?:[0-9]{0,4} {0,6}|[0-9]{0,4}e(?:[+-](?:0[0-4]?)?)?))?)?)?")
_AXIS_DONE = re.compile(r" {0,9}-?[0-9](?:\.[0-9]{0,4} {0,6}|\.[0-9]{0,4}e[+-]0[0-4])?")
_ANGLE = re.compile(r"-?(?:[0-9](?:\.[0-9]{0,6})?)?")
_ANGLE_DONE = re.compile(r"-?[0-9](?:\.[0-9]{0,6})?")
_PI = tuple(angle_text(sign * math.pi * top / bottom) or "" for top, bottom in FRACTIONS for sign in (1, -1))
"""Angles that have a name."""


@dataclass(frozen=True, slots=True)
class Literal:
    """Exactly this text."""

    text: str

    def goes_on(self, partial: str) -> bool:
        """Whether `partial` may become a match."""
        return self.text.startswith(partial)

    def done(self, partial: str) -> bool:
        """Whether `partial` is a match."""
        return partial == self.text

    def ending(self, partial: str) -> str:
        """The shortest text that turns `partial` into a match."""
        return self.text[len(partial) :]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several texts, none of which begins with another; the first ends the program soonest."""

    options: tuple[str, ...]

    def goes_on(self, partial: str) -> bool:
        """Whether `partial` may become a match."""
        return any(option.startswith(partial) for option in self.options)

    def done(self, partial: str) -> bool:
        """Whether `partial` is a match."""
        return partial in self.options

    def ending(self, partial: str) -> str:
        """The rest of the first option that fits."""
        return next(option for option in self.options if option.startswith(partial))[len(partial) :]


@dataclass(frozen=True, slots=True)
class Number:
    """A number with its padding; the character after it says where it ends.

    A text that could not be continued to an allowed value is no beginning of one: there are no dead ends.
    """

    kind: str = "length"
    """length (to 999999.9999, also scientific), axis (4 decimals, below 10) or angle."""
    rule: Rule | None = None
    """What the value must satisfy; it may forbid only a few isolated values."""
    goal: str = ""
    """Text of the value that ends the program soonest."""

    def goes_on(self, partial: str) -> bool:
        """Whether `partial` may become a match."""
        if not _begins(self.kind, partial):
            return False
        if self.kind == "angle" or (self.rule is None and self.kind == "length"):
            return True
        if partial.endswith("e"):  # the exponent 0 must be possible, others may not be
            return self.allowed(f"{partial}+00")
        return not _settled(self.kind, partial) or self.allowed(partial)

    def done(self, partial: str) -> bool:
        """Whether `partial` is a match."""
        return _complete(self.kind, partial) and self.allowed(partial)

    def allowed(self, partial: str) -> bool:
        """Whether the value of a complete text is allowed."""
        if self.kind == "angle":
            return True
        value = float(partial)
        if self.kind == "axis":  # finer than 4 decimals, or large: nearly parallel axes could not be told apart
            lattice = value * 1e4
            if abs(value) >= 10 or abs(round(lattice) - lattice) > 1e-6:
                return False
        return self.rule is None or self.rule(value)

    def ending(self, partial: str) -> str:
        """A short text that turns `partial` into a match."""
        if self.goal.startswith(partial) and self.done(self.goal):
            return self.goal[len(partial) :]
        for size in range(6):
            for letters in product("1203.e+-", repeat=size):
                tail = "".join(letters)
                if self.done(partial + tail):
                    return tail
        raise AssertionError(f"no number begins with {partial!r}")


@lru_cache(maxsize=65536)
def _begins(kind: str, partial: str) -> bool:
    if kind == "axis":
        return _AXIS.fullmatch(partial) is not None
    if kind == "angle":
        return _ANGLE.fullmatch(partial) is not None or any(text.startswith(partial) for text in _PI)
    return _LENGTH.fullmatch(partial) is not None or _SCIENTIFIC.fullmatch(partial) is not None


@lru_cache(maxsize=65536)
def _complete(kind: str, partial: str) -> bool:
    if kind == "axis":
        return _AXIS_DONE.fullmatch(partial) is not None
    if kind == "angle":
        return _ANGLE_DONE.fullmatch(partial) is not None or partial in _PI
    return _LENGTH_DONE.fullmatch(partial) is not None or _SCIENTIFIC_DONE.fullmatch(partial) is not None


@lru_cache(maxsize=65536)
def _settled(kind: str, partial: str) -> bool:
    """Whether no further character can change the digits of the value."""
    return not any(_begins(kind, partial + letter) for letter in "0123456789.")


Matcher = Literal | Choice | Number
