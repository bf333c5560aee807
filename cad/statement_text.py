"""Where the arguments of a statement stand in its text, and how a new value is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mm.cad.commands import COMMANDS
from mm.cad.emitter import Layout
from mm.cad.tokens import tokenize


def argument_spans(statement: str) -> tuple[dict[str, tuple[int, int]], int]:
    """Argument name -> (start, end) of its value, and the place of the closing bracket; for a valid call.

    Example:
        >>> spans, closing = argument_spans("a = add_line([0, 1], end= [2, 3])")
        >>> spans, closing
        ({'start': (13, 19), 'end': (26, 32)}, 32)
    """
    tokens = tokenize(statement)
    names = [argument.name for argument in COMMANDS[tokens[2].text]]
    spans: dict[str, tuple[int, int]] = {}
    i, depth, count = 4, 1, 0
    key, begin = None, None
    end = tokens[3].offset
    while depth:
        token = tokens[i]
        depth += (token.text in "([") - (token.text in ")]") if token.kind == "mark" else 0
        if depth == 1 and token.text == "=":
            key, begin = tokens[i - 1].text, None
        elif depth == 0 or (depth == 1 and token.text == ","):
            if begin is not None:
                spans[key or names[count]] = (begin, end)
            count, key, begin = count + 1, None, None
            if depth == 0:
                return spans, token.offset
        elif begin is None:
            begin = token.offset
        end = token.offset + len(token.text)
        i += 1
    raise AssertionError("a valid call closes its bracket")


def value_text(value: Any, kind: str, layout: Layout) -> str:
    """A value as text of a style.

    Args:
        value: A number, a sequence of numbers, True/False, None, or a string (a name or a formula).
        kind: Kind of the argument, as in `COMMANDS`.
        layout: Numbers are printed in its style.
    """
    if isinstance(value, str):
        return f'"{value}"' if kind == "string" else value
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, Sequence):
        if any(isinstance(part, str) for part in value):
            return f"[{', '.join(value_text(part, 'number', layout) for part in value)}]"
        return layout.vector(tuple(float(part) for part in value))
    return str(int(value)) if kind == "integer" else layout.scalar(float(value))
