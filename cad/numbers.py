"""Numbers of the language: literals, pi, + - * / and parentheses, and named numbers.

An expression is kept in postfix order, so that neither its length nor its nesting can exhaust the stack.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mm.cad.limits import MAX_VALUE
from mm.cad.tokens import SyntaxProblem

Operand = float | str
"""A value, a name, or one of the operators "+ - * /" and "neg"."""
_OPERATORS = {"+", "-", "*", "/", "neg"}


@dataclass(frozen=True, slots=True)
class Formula:
    """An expression with names in it, in postfix order."""

    items: tuple[Operand, ...]
    offset: int
    """Place in the statement, for messages."""

    def value(self, known: Mapping[str, float]) -> float:
        """The number, given the values of the names.

        Example:
            >>> Formula(("width", 2.0, "/"), 0).value({"width": 5.0})
            2.5

        Raises:
            SyntaxProblem: undefined-name, non-finite or out-of-range.
        """
        return checked(compute(self.items, known, self.offset), self.offset)


def compute(items: tuple[Operand, ...] | list[Operand], known: Mapping[str, float], offset: int) -> float:
    """Work off a postfix expression."""
    stack: list[float] = []
    for item in items:
        if isinstance(item, float):
            stack.append(item)
        elif item == "neg":
            stack.append(-stack.pop())
        elif item in _OPERATORS:
            right, left = stack.pop(), stack.pop()
            stack.append(_apply(item, left, right, offset))
        elif item in known:
            stack.append(known[item])
        else:
            raise SyntaxProblem("undefined-name", f"{item} is not a number that was defined above", offset, item)
    return stack[0]


def _apply(operator: str, left: float, right: float, offset: int) -> float:
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    if right == 0.0:
        raise SyntaxProblem("non-finite", "division by zero", offset)
    return left / right


def checked(value: float, offset: int) -> float:
    """`value` if it is finite and within the limits.

    Raises:
        SyntaxProblem: non-finite or out-of-range.
    """
    if -MAX_VALUE <= value <= MAX_VALUE:
        return value
    if not math.isfinite(value):
        raise SyntaxProblem("non-finite", "a number must be finite", offset)
    raise SyntaxProblem("out-of-range", f"{value:g} is beyond the limit of {MAX_VALUE:g}", offset)
