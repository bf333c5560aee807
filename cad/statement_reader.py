"""One statement: text -> what it defines, which command it calls, and the checked arguments.

    stmt := NAME "=" ( "[]" | call | num ) | NAME ("," NAME)+ "=" "[]" ("," "[]")+ | NAME ".append(" NAME ")"
    call := COMMAND "(" [ arg { "," arg } ] ")"
    arg  := [ KEY "=" ] ( vec | num | NAME | STRING | True | False | None )

Everything that can be said about a statement alone is said here; what its names stand for is the parser's business.
That split makes the result a pure function of the text, so equal lines ("Loops0 = []") are read once.

Deviation: `NAME = num` (a named number, usable wherever a number stands) is our extension for editing by hand.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from mm.cad.commands import COMMANDS, POSITION, RESERVED, Argument
from mm.cad.limits import MAX_STATEMENT
from mm.cad.numbers import Formula, Operand, checked, compute
from mm.cad.statement import Name, Statement
from mm.cad.statement_checks import checked_call
from mm.cad.tokens import SyntaxProblem, Token, tokenize

_CACHE_LENGTH = 400
"""Longer statements are read, but not remembered."""


def read_statement(text: str) -> Statement | None:
    """Read one statement; None for a text of blanks and comments.

    Raises:
        SyntaxProblem: the text is no statement, or an argument cannot be right.
    """
    if len(text) <= _CACHE_LENGTH:
        return _remembered(text)
    if len(text) > MAX_STATEMENT:
        raise SyntaxProblem("too-long", f"a statement has at most {MAX_STATEMENT} characters", MAX_STATEMENT)
    return _read(text)


def bind(statement: Statement, known: dict[str, float]) -> Statement:
    """Replace the formulas of a statement by numbers.

    Args:
        statement: One with `open` set.
        known: Values of the named numbers.
    """
    values = tuple(
        tuple(_number(part, known) for part in value) if type(value) is tuple else _number(value, known)
        for value in statement.values
    )
    return checked_call(statement._replace(values=values, open=False))


def _number(value: Any, known: dict[str, float]) -> Any:
    return value.value(known) if isinstance(value, Formula) else value


def _read(text: str) -> Statement | None:
    tokens = tokenize(text)
    return None if len(tokens) == 1 else _Reader(tokens).statement()


_remembered = lru_cache(maxsize=1 << 15)(_read)


class _Reader:
    """Recursive descent over the words of one statement; `i` is the next word."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.i = 0

    def statement(self) -> Statement:
        targets = [self.target()]
        if self.accept("."):
            return self.append(targets[0])
        while self.accept(","):
            targets.append(self.target())
        self.expect("=")
        token = self.tokens[self.i]
        if token.text == "[" or len(targets) > 1:
            result = self.empty_lists(targets)
        elif token.kind == "name" and self.tokens[self.i + 1].text == "(":
            result = self.call(targets[0])
        else:
            value = self.expression()
            result = Statement("number", tuple(targets), (value,), (token.offset,), open=isinstance(value, Formula))
        self.end()
        return result

    def target(self) -> Name:
        token = self.take("name", "a name")
        if token.text in RESERVED:
            raise SyntaxProblem(
                "bad-syntax", f"{token.text} cannot stand here, it is a word of the language", token.offset
            )
        return Name(token.text, token.offset)

    def append(self, target: Name) -> Statement:
        method = self.take("name", "append")
        if method.text != "append":
            raise SyntaxProblem("bad-syntax", f"only .append(...) is allowed, not .{method.text[:40]}", method.offset)
        self.expect("(")
        item = self.take("name", "the name of a curve or a loop")
        self.expect(")")
        self.end()
        return Statement("append", (target,), (Name(item.text, item.offset),), (item.offset,))

    def empty_lists(self, targets: list[Name]) -> Statement:
        for i in range(len(targets)):
            if i:
                self.expect(",")
            self.expect("[")
            self.expect("]")
        return Statement("list", tuple(targets))

    def call(self, target: Name) -> Statement:
        name = self.tokens[self.i]
        if name.text not in COMMANDS:
            known = ", ".join(COMMANDS)
            raise SyntaxProblem("unknown-function", f"{name.text[:60]} is no command; there are {known}", name.offset)
        self.i += 2
        row = COMMANDS[name.text]
        values: list[Any] = [argument.default for argument in row]
        offsets = [name.offset] * len(row)
        given: set[int] = set()
        named = False
        while not self.accept(")"):
            if given:
                self.expect(",")
            place, key_given = self.argument_place(name.text, len(given))
            if named and not key_given:
                raise SyntaxProblem("bad-syntax", "an argument without a name cannot follow a named one", self.here())
            named = key_given
            if place in given:
                raise SyntaxProblem(
                    "repeated-argument", f"{row[place].name} of {name.text} is given twice", self.here()
                )
            given.add(place)
            offsets[place] = self.here()
            values[place] = self.value(row[place])
        if ... in values:
            missing = ", ".join(a.name for a, value in zip(row, values, strict=True) if value is ...)
            raise SyntaxProblem("wrong-arity", f"{name.text} lacks {missing}", name.offset)
        is_open = any(
            isinstance(part, Formula) for value in values for part in (value if type(value) is tuple else (value,))
        )
        statement = Statement(name.text, (target,), tuple(values), tuple(offsets), open=is_open)
        return statement if is_open else checked_call(statement)

    def argument_place(self, command: str, count: int) -> tuple[int, bool]:
        """Place of the next argument, and whether it came with its name."""
        token = self.tokens[self.i]
        if token.kind == "name" and self.tokens[self.i + 1].text == "=":
            place = POSITION[command].get(token.text)
            if place is None:
                allowed = ", ".join(POSITION[command])
                raise SyntaxProblem(
                    "unknown-argument", f"{command} has no argument {token.text[:60]}; it has {allowed}", token.offset
                )
            self.i += 2
            return place, True
        if count >= len(COMMANDS[command]):
            if token.kind == "end":
                raise self.unexpected("a closing bracket")
            most = len(COMMANDS[command])
            raise SyntaxProblem("wrong-arity", f"{command} takes at most {most} arguments", token.offset)
        return count, False

    def value(self, argument: Argument) -> Any:
        """The next value, which must fit the argument."""
        token, kind = self.tokens[self.i], argument.kind
        if kind == "vec2" or kind == "vec3":
            return self.vector(2 if kind == "vec2" else 3, argument.name)
        if kind == "number" and token.text not in ("[", "True", "False", "None") and token.kind != "string":
            return self.expression()
        if kind == "integer" and token.text not in ("[", "True", "False", "None") and token.kind != "string":
            return self.expression()
        if kind == "name" and token.kind == "name" and (token.text not in RESERVED or self.is_none(argument)):
            self.i += 1
            return None if token.text == "None" else Name(token.text, token.offset)
        if kind == "string" and token.kind == "string":
            self.i += 1
            return token.text[1:-1]
        if kind == "flag" and token.text in ("True", "False"):
            self.i += 1
            return token.text == "True"
        if token.kind == "end":
            raise self.unexpected("a value")
        wanted = {"integer": "a whole number", "number": "a number", "flag": "True or False", "string": "a string"}
        raise SyntaxProblem(
            "bad-type", f"{argument.name} wants {wanted.get(kind, 'a name')}, found {token.text[:40]}", token.offset
        )

    def is_none(self, argument: Argument) -> bool:
        return self.tokens[self.i].text == "None" and argument.default is None

    def vector(self, length: int, name: str) -> tuple[float | Formula, ...]:
        token = self.tokens[self.i]
        if token.text != "[":
            if token.kind == "end":
                raise self.unexpected("a vector")
            raise SyntaxProblem(
                "bad-type", f"{name} wants a vector of {length} numbers, found {token.text[:40]}", token.offset
            )
        self.i += 1
        parts: list[float | Formula] = []
        while not parts or self.accept(","):
            if self.tokens[self.i].text == "]":
                break
            parts.append(self.expression())
        self.expect("]")
        if len(parts) != length:
            raise SyntaxProblem("bad-type", f"{name} wants {length} numbers, found {len(parts)}", token.offset)
        return tuple(parts)

    # numbers ---------------------------------------------------------------------------------------------------

    def expression(self) -> float | Formula:
        """A number; a Formula when named numbers are in it."""
        tokens, start = self.tokens, self.i
        sign = tokens[start].text == "-"
        token = tokens[start + sign] if sign else tokens[start]
        if token.kind == "number" and tokens[start + sign + 1].text in (",", "]", ")", ""):  # the usual case
            self.i = start + sign + 1
            value = float(token.text)
            return checked(-value if sign else value, token.offset)
        offset, items = tokens[start].offset, list[Operand]()
        self.sum(items)
        if any(isinstance(item, str) and item[0].isidentifier() and item != "neg" for item in items):
            return Formula(tuple(items), offset)
        return checked(compute(items, {}, offset), offset)

    def sum(self, items: list[Operand]) -> None:
        self.product(items)
        while self.tokens[self.i].text in ("+", "-"):
            operator = self.tokens[self.i].text
            self.i += 1
            self.product(items)
            items.append(operator)

    def product(self, items: list[Operand]) -> None:
        self.factor(items)
        while self.tokens[self.i].text in ("*", "/"):
            operator = self.tokens[self.i].text
            self.i += 1
            self.factor(items)
            items.append(operator)

    def factor(self, items: list[Operand]) -> None:
        negative = False
        while self.tokens[self.i].text in ("+", "-"):
            negative ^= self.tokens[self.i].text == "-"
            self.i += 1
        if self.accept("("):
            self.sum(items)
            self.expect(")")
        else:
            items.append(self.atom())
        if negative:
            items.append("neg")

    def atom(self) -> Operand:
        token = self.tokens[self.i]
        if token.kind == "number":
            self.i += 1
            return float(token.text)
        if token.text in ("np", "math"):
            self.i += 1
            self.expect(".")
            if self.take("name", "pi").text != "pi":
                raise SyntaxProblem("bad-syntax", f"only {token.text}.pi is allowed", token.offset)
            return self.pi()
        if token.text == "pi":
            self.i += 1
            return self.pi()
        if token.kind == "name" and token.text not in RESERVED and token.text != "neg":
            self.i += 1
            return token.text
        raise self.unexpected("a number")

    def pi(self) -> float:
        if self.tokens[self.i].text == ".":
            raise SyntaxProblem("bad-syntax", "pi is a number, it has no parts", self.here())
        return math.pi

    # words -----------------------------------------------------------------------------------------------------

    def here(self) -> int:
        return self.tokens[self.i].offset

    def accept(self, mark: str) -> bool:
        if self.tokens[self.i].text == mark:
            self.i += 1
            return True
        return False

    def expect(self, mark: str) -> None:
        if self.tokens[self.i].text != mark:
            raise self.unexpected(mark)
        self.i += 1

    def take(self, kind: str, wanted: str) -> Token:
        token = self.tokens[self.i]
        if token.kind != kind:
            raise self.unexpected(wanted)
        self.i += 1
        return token

    def end(self) -> None:
        if self.tokens[self.i].kind != "end":
            raise self.unexpected("the end of the statement")

    def unexpected(self, wanted: str) -> SyntaxProblem:
        token = self.tokens[self.i]
        if token.kind == "end":
            return SyntaxProblem("unterminated", f"the statement ends where {wanted} should stand", token.offset)
        return SyntaxProblem("bad-syntax", f"found {token.text[:40]}, expected {wanted}", token.offset)
