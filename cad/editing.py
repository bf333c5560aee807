"""Editing a program as text: one change at a time, every other line stays byte for byte.

    editor = edit(text)
    change = editor.set("Extrude0", extent_one=30.0)
    change.text                      # the new program text; editor.text is the same
    change.moved                     # which other extrudes move by that, and how far

Names are those of the text, whatever they are. Every change is checked by parsing the result: a change that would
break the program raises, and the text stays as it was.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mm.cad.commands import COMMANDS, POSITION, RESERVED
from mm.cad.dependencies import Graph
from mm.cad.edit_report import Moved, moved_between
from mm.cad.emitter import OFFICIAL
from mm.cad.parser import parse
from mm.cad.program import Program
from mm.cad.source import Placed
from mm.cad.statement_text import argument_spans, value_text

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Change:
    """What an edit did."""

    text: str
    """The program text after the edit."""
    program: Program
    moved: tuple[Moved, ...]
    """Extrudes whose plane in space or whose own shape changed, in building order."""


class EditError(ValueError):
    """An edit that cannot be made; the program is unchanged."""


def edit(source: Program | str) -> Editor:
    """Open a program for editing.

    Args:
        source: A text, or a program that was parsed from one (a converted program: `emit` it first).

    Example:
        >>> from mm.cad.examples import PLATE
        >>> edit(PLATE).set("Extrude0", extent_one=12).text.splitlines()[-1]
        '\\toperation= 0, type= 0, extent_one= 12., extent_two= 0.)'
    """
    if isinstance(source, Program):
        if source.source is None:
            raise EditError("this program has no text; edit(emit(program)) gives it one")
        source = source.source.text
    return Editor(source)


class Editor:
    """A program text that is changed step by step."""

    def __init__(self, text: str) -> None:
        self._accept(text, parse(text))

    def _accept(self, text: str, program: Program) -> None:
        self.text, self.program = text, program
        assert program.source is not None
        self.graph = Graph(program.source.statements)

    def _changed(self, text: str, origin: dict[int, int | None] | None = None) -> Change:
        """Check and adopt a new text; `origin` maps new extrude indices to old ones where they differ."""
        try:
            program = parse(text)
            moved = moved_between(self.program, program, self.graph.extrude_names(), origin)
        except ValueError as error:
            raise EditError(f"the edit would break the program: {error}") from error
        self._accept(text, program)
        return Change(text, program, moved)

    def _placed(self, name: str) -> Placed:
        if name not in self.graph.definition:
            known = ", ".join(list(self.graph.definition)[:12])
            raise EditError(f"the program has no {name}; it has {known}, ...")
        return self.graph.definition[name]

    # values ----------------------------------------------------------------------------------------------------

    def set(self, name: str, **values: Any) -> Change:
        """Change arguments of the statement that defines `name`, or the value of a named number (`value=`).

        Args:
            name: For instance "Extrude0", "Circle0_1_0", "SketchPlane2".
            values: Argument names of the command with numbers, vectors, names (str), True or False. A string that is no
                name of the program, for instance "width / 2", is taken as a formula.

        Raises:
            EditError: no such name or argument, or the result is no program.
        """
        return self.set_many({name: values})

    def set_many(self, values: Mapping[str, Mapping[str, Any]]) -> Change:
        """Several `set` at once: a corner of an outline belongs to two curves, and each alone would open the loop.

        Args:
            values: Name -> arguments and values, as in `set`.
        """
        pieces = [piece for name, arguments in values.items() for piece in self._pieces(name, dict(arguments))]
        return self._changed(_spliced(self.text, pieces))

    def _pieces(self, name: str, values: dict[str, Any]) -> list[tuple[int, int, str]]:
        placed = self._placed(name)
        if placed.statement.kind == "number":
            if set(values) != {"value"}:
                raise EditError(f"{name} is a number; use set({name!r}, value=...)")
            begin = self.text.index("=", placed.start) + 1
            return [(begin, placed.end, f" {value_text(values['value'], 'number', OFFICIAL)}")]
        if placed.statement.kind not in COMMANDS:
            raise EditError(f"{name} is a list; it has no arguments")
        return self._argument_pieces(placed, values)

    def _argument_pieces(self, placed: Placed, values: dict[str, Any]) -> list[tuple[int, int, str]]:
        kind = placed.statement.kind
        spans, closing = argument_spans(self.text[placed.start : placed.end])
        pieces = []
        for key, value in values.items():
            if key not in POSITION[kind]:
                raise EditError(f"{kind} has no argument {key}; it has {', '.join(POSITION[kind])}")
            argument = COMMANDS[kind][POSITION[kind][key]]
            text = value_text(value, argument.kind, OFFICIAL)
            if key in spans:
                begin, end = spans[key]
                pieces.append((placed.start + begin, placed.start + end, text))
            else:
                pieces.append((placed.start + closing, placed.start + closing, f", {key}= {text}"))
        return pieces

    def rename(self, old: str, new: str) -> Change:
        """Give a variable another name, everywhere."""
        self._placed(old)
        if not _NAME.fullmatch(new) or new in RESERVED:
            raise EditError(f"{new!r} cannot be a name")
        if new in self.graph.definition:
            raise EditError(f"{new} is already defined")
        pieces = [(start, start + len(old), new) for start in self.graph.occurrences(self.text, old)]
        return self._changed(_spliced(self.text, pieces))

    # features --------------------------------------------------------------------------------------------------

    def delete(self, extrude: str, *, dependents: bool = False) -> Change:
        """Remove a feature: its extrude and every statement that only it needs.

        Args:
            extrude: Name of an extrude.
            dependents: Also remove the extrudes that refer to it; without, they are an error.
        """
        doomed = {extrude}
        self._feature(extrude)
        while grown := {user for name in doomed for user in self.graph.extrudes_on(name)} - doomed:
            if not dependents:
                names = ", ".join(sorted(grown))
                raise EditError(
                    f"{names} refer to {extrude}; delete them, too (dependents=True), or place them otherwise"
                )
            doomed |= grown
        statements = self.graph.exclusive(doomed)
        pieces = [self._line_span(placed) for placed in statements]
        keep = [i for i, name in enumerate(self.graph.extrude_names()) if name not in doomed]
        return self._changed(_spliced(self.text, pieces), dict(enumerate(keep)))

    def move(self, extrude: str, *, before: str | None = None) -> Change:
        """Build a feature earlier or later.

        Args:
            extrude: Name of an extrude; its whole block of statements moves.
            before: Name of the extrude in front of whose block it goes; None = to the end.
        """
        if before == extrude:
            raise EditError("a feature cannot be moved in front of itself")
        block = self._block(extrude)
        target = self._block(before)[0].start if before is not None else self._code_end()
        spans = [self._line_span(placed) for placed in block]
        moved = "".join(_line(self.text, start, end) for start, end, _ in spans)
        order = [name for name in self.graph.extrude_names() if name != extrude]
        order.insert(order.index(before) if before is not None else len(order), extrude)
        old = {name: i for i, name in enumerate(self.graph.extrude_names())}
        text = _spliced(self.text, [*spans, (target, target, _fresh_line(self.text, target) + moved)])
        return self._changed(text, {i: old[name] for i, name in enumerate(order)})

    def insert(self, feature: str, *, before: str | None = None) -> Change:
        """Add statements of a new feature.

        Args:
            feature: The statements, with names of their own; they may refer to everything above.
            before: Name of the extrude in front of whose block they go; None = at the end.
        """
        position = len(self.graph.extrude_names()) if before is None else self.graph.extrude_names().index(before)
        target = self._code_end() if before is None else self._block(before)[0].start
        block = _fresh_line(self.text, target) + (feature if feature.endswith("\n") else feature + "\n")
        text = self.text[:target] + block + self.text[target:]
        count = sum(1 for _ in re.finditer(r"\badd_extrude\s*\(", feature))
        old = len(self.graph.extrude_names())
        new_to_old: dict[int, int | None] = {i: i if i < position else i - count for i in range(old + count)}
        new_to_old |= {position + k: None for k in range(count)}
        return self._changed(text, new_to_old)

    # numbers ---------------------------------------------------------------------------------------------------

    def parametrise(self, value: float, name: str, *, where: Sequence[str] = ()) -> Change:
        """Lift a number that occurs several times to a named one: `name = value` above, `name` in its places.

        Args:
            value: Every number equal to it is replaced; its negative becomes `-name`.
            name: A new name.
            where: Only in the statements that define these names; empty = everywhere.
        """
        if not _NAME.fullmatch(name) or name in RESERVED or name in self.graph.definition:
            raise EditError(f"{name!r} is no free name")
        chosen = [self._placed(word) for word in where] or list(self._statements())
        pieces = [piece for placed in chosen for piece in self.graph.numbers(self.text, placed, value, name)]
        if not pieces:
            raise EditError(f"{value:g} does not occur")
        start = self._statements()[0].start
        head = f"{name} = {value_text(value, 'number', OFFICIAL)}\n"
        return self._changed(_spliced(self.text, [(start, start, head), *pieces]))

    def repeated(self, least: int = 2) -> dict[float, int]:
        """Lengths that occur at least so often, by magnitude; 0 and 1 are left out.

        Example:
            >>> from mm.cad.examples import PLATE
            >>> edit(PLATE).repeated()
            {}
        """
        counts = self.graph.magnitudes()
        found = {value: count for value, count in counts.items() if count >= least and value not in (0.0, 1.0)}
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    # places ----------------------------------------------------------------------------------------------------

    def _statements(self) -> tuple[Placed, ...]:
        assert self.program.source is not None
        return self.program.source.statements

    def _code_end(self) -> int:
        assert self.program.source is not None
        return self.program.source.end

    def _feature(self, extrude: str) -> Placed:
        placed = self._placed(extrude)
        if placed.statement.kind != "add_extrude":
            raise EditError(f"{extrude} is no extrude")
        return placed

    def _block(self, extrude: str) -> list[Placed]:
        """The statements that belong to one feature alone, in the order of the text."""
        self._feature(extrude)
        return self.graph.exclusive({extrude})

    def _line_span(self, placed: Placed) -> tuple[int, int, str]:
        end = placed.end + 1 if placed.end < len(self.text) else placed.end
        return placed.start, end, ""


def _line(text: str, start: int, end: int) -> str:
    line = text[start:end]
    return line if line.endswith("\n") else f"{line}\n"


def _fresh_line(text: str, offset: int) -> str:
    return "\n" if offset and text[offset - 1] != "\n" else ""


def _spliced(text: str, pieces: list[tuple[int, int, str]]) -> str:
    """Replace (start, end) by new text; pieces must not overlap."""
    result, last = [], 0
    for start, end, new in sorted(pieces, key=lambda piece: piece[:2]):
        result += [text[last:start], new]
        last = end
    return "".join([*result, text[last:]])
