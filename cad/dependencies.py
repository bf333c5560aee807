"""Which statement needs which: the dependency graph of a program text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from mm.cad.commands import COMMANDS
from mm.cad.numbers import Formula
from mm.cad.source import Placed
from mm.cad.statement import Name, Statement
from mm.cad.tokens import tokenize


class Graph:
    """Statements by the names they define and use.

    Args:
        statements: All statements of a program that was accepted, in order.
    """

    def __init__(self, statements: tuple[Placed, ...]) -> None:
        self.statements = statements
        self.definition: dict[str, Placed] = {}
        self.needs: dict[str, set[str]] = {}
        self.filled: dict[str, list[str]] = {}
        """List -> the curves or loops in it (put there automatically or by append)."""
        self._order = {id(placed): i for i, placed in enumerate(statements)}
        self._appends: dict[str, list[Placed]] = {}
        kinds = {s.statement.values[0].text: s.statement.kind for s in statements
                 if s.statement.kind in ("add_loop", "add_profile")}  # fmt: skip
        explicit = {s.statement.values[0].text for s in statements if s.statement.kind == "append"}
        latest: dict[str, str] = {}
        for placed in statements:
            self._add(placed, kinds, explicit, latest)

    def _add(self, placed: Placed, kinds: dict[str, str], explicit: set[str], latest: dict[str, str]) -> None:
        statement = placed.statement
        if statement.kind == "append":
            target, item = statement.targets[0].text, statement.values[0].text
            self._appends.setdefault(item, []).append(placed)
            self.filled[target].append(item)
            self.needs[target].add(item)
            return
        used = set(names_in(statement))
        for name in statement.targets:
            self.definition[name.text] = placed
            self.needs[name.text] = set(used)
            if statement.kind == "list":
                self.filled[name.text] = []
                latest[kinds.get(name.text, "")] = name.text
            holder = _HOLDERS.get(statement.kind)
            if holder is not None and name.text not in explicit and (holder in latest or "" in latest):
                home = latest.get(holder) or latest[""]
                self.filled[home].append(name.text)
                self.needs[home].add(name.text)

    def extrude_names(self) -> list[str]:
        """Names of the extrudes in building order."""
        return [p.statement.targets[0].text for p in self.statements if p.statement.kind == "add_extrude"]

    def extrudes_on(self, extrude: str) -> list[str]:
        """Extrudes whose sketch plane refers to `extrude`."""
        planes = {name: self.plane_of(name) for name in self.extrude_names()}
        return [name for name, plane in planes.items() if plane is not None and extrude in self.needs[plane]]

    def plane_of(self, extrude: str) -> str | None:
        """Name of the sketch plane of an extrude."""
        sketch = self.definition[extrude].statement.values[0].text
        return self.definition[sketch].statement.values[0].text if sketch in self.definition else None

    def exclusive(self, extrudes: set[str]) -> list[Placed]:
        """The statements that only these extrudes need, in order, with their appends."""
        others = {part for name in self.extrude_names() if name not in extrudes for part in self.own(name)}
        mine = {name for extrude in extrudes for name in self.own(extrude)} - others
        found = [self.definition[name] for name in mine]
        found += [append for item in mine for append in self._appends.get(item, ())]
        # A statement that opens several lists stays while one of them is needed.
        found = [
            p for p in found if p.statement.kind != "list" or not any(t.text in others for t in p.statement.targets)
        ]
        unique = {id(p): p for p in found}
        return sorted(unique.values(), key=lambda p: self._order[id(p)])

    def own(self, extrude: str) -> set[str]:
        """An extrude and what it is made of: not the features its plane refers to, and no named numbers."""
        found, queue = {extrude}, [extrude]
        while queue:
            name = queue.pop()
            if self.definition[name].statement.kind == "add_sketchplane_ref":
                continue
            for need in self.needs[name] - found:
                if need in self.definition and self.definition[need].statement.kind != "number":
                    found.add(need)
                    queue.append(need)
        return found

    # text ------------------------------------------------------------------------------------------------------

    def occurrences(self, text: str, name: str) -> Iterator[int]:
        """Places in the text where a variable name stands."""
        for placed in self.statements:
            tokens = tokenize(text[placed.start : placed.end])
            for i, token in enumerate(tokens):
                keyword = (
                    i > 1
                    and tokens[i - 1].text in ("(", ",")
                    and tokens[i + 1].text == "="
                    and placed.statement.kind in COMMANDS
                )
                if token.kind == "name" and token.text == name and not keyword:
                    yield placed.start + token.offset

    def numbers(self, text: str, placed: Placed, value: float, name: str) -> Iterator[tuple[int, int, str]]:
        """Pieces that put `name` in the place of a number of one statement."""
        statement = placed.statement
        if statement.kind not in COMMANDS:
            return
        tokens = tokenize(text[placed.start : placed.end])
        for i, token in enumerate(tokens):
            whole = statement.kind == "add_extrude" and tokens[i - 2].text in ("operation", "type")
            if token.kind == "number" and float(token.text) == abs(value) and not whole:
                negative = value < 0
                sign = tokens[i - 1]
                if negative and sign.text == "-":
                    yield placed.start + sign.offset, placed.start + token.offset + len(token.text), name
                else:
                    new = f"(-{name})" if negative else name
                    yield placed.start + token.offset, placed.start + token.offset + len(token.text), new

    def magnitudes(self) -> Counter[float]:
        """How often each length occurs, signs aside."""
        counts: Counter[float] = Counter()
        for placed in self.statements:
            statement = placed.statement
            if statement.kind not in COMMANDS:
                continue
            kinds = [argument.kind for argument in COMMANDS[statement.kind]]
            for kind, value in zip(kinds, statement.values, strict=True):
                parts = value if isinstance(value, tuple) else (value,)
                if kind in ("vec2", "vec3", "number"):
                    counts.update(abs(part) for part in parts if isinstance(part, float))
        return counts


_HOLDERS = {"add_line": "add_loop", "add_arc": "add_loop", "add_circle": "add_loop", "add_loop": "add_profile"}
"""Command -> the command that its list is handed to."""


def names_in(statement: Statement) -> Iterator[str]:
    """All names a statement uses."""
    for value in statement.values:
        if isinstance(value, Name):
            yield value.text
            continue
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, Formula):
                yield from (
                    item for item in part.items if isinstance(item, str) and item.isidentifier() and item != "neg"
                )
