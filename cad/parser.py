"""Text -> program, as data: nothing in the text is ever executed.

The text is cut into statements (`source`), each is read alone (`statement_reader`), and this file gives the names
their meaning. Lists are filled as in version 2 of the language: a curve goes into the most recently opened list of
curves, a loop into the most recently opened list of loops. What a list holds follows from the command it is handed to,
never from its name. An explicit `list.append(item)` (version 1) replaces the automatic one for that item.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from mm.cad.commands import PLANE_ALIASES
from mm.cad.errors import Notice, ProgramError
from mm.cad.limits import MAX_BYTES, MAX_CURVES, MAX_EXTRUDES, MAX_STATEMENTS
from mm.cad.program import AbsolutePlane, Curve, Extrude, Line, Loop, Program, RelativePlane
from mm.cad.source import Placed, Source, chunks, code_span, position
from mm.cad.statement import Name, Statement
from mm.cad.statement_reader import bind, read_statement
from mm.cad.tokens import SyntaxProblem
from mm.cad.version1 import Version1Plane, from_grid

_IMPORT = re.compile(
    r"[ \t\r]*(?:import[ \t]+[A-Za-z_][\w.]*(?:[ \t]+as[ \t]+\w+)?"
    r"|from[ \t]+[A-Za-z_][\w.]*[ \t]+import[ \t]+(?:\*|\w+(?:[ \t]*,[ \t]*\w+)*))[ \t\r]*(?:\#[^\n]*)?",
    re.ASCII,
)


def parse(text: str, *, recover: bool = False) -> Program:
    """Read a program, with or without prose and a fence around it.

    Args:
        text: Version 2 of the language, or version 1 (recognised by its `y_axis`), which is converted.
        recover: Accept a text whose end is missing or wrong: the result holds the extrudes that are complete before
            the first error, and a notice "truncated" says what the error was.

    Returns:
        The program; `.notices` says what was ignored or repaired.

    Raises:
        ProgramError: with line, column and one of `mm.cad.errors.CODES`.

    Example:
        >>> from mm.cad.examples import PLATE
        >>> parse(PLATE).extrudes[0].extent_one
        6.35
    """
    if not isinstance(text, str):
        raise ProgramError("bad-type", f"a program is text, found {type(text).__name__}")
    if len(text) > MAX_BYTES or (not text.isascii() and len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES):
        raise ProgramError("too-long", f"a program has at most {MAX_BYTES} bytes", 1, 1)
    start, end = code_span(text)
    placed: list[Placed] = []
    notices: list[Notice] = []
    error = _split(text, start, end, placed, notices)
    if error is not None and not recover:
        raise error
    builder = _Builder(text, placed, notices)
    late = builder.run()
    error = late or error
    if error is not None and (not recover or not builder.extrudes):
        raise error
    if not builder.extrudes:
        raise ProgramError("no-extrude", "the program builds nothing: it has no add_extrude", *position(text, end))
    if error is not None:
        notices.append(Notice("truncated", f"left out from here on: {error.message}", error.line, error.column))
    return Program(tuple(builder.extrudes), tuple(notices), Source(text, start, end, tuple(placed)))


def _split(text: str, start: int, end: int, placed: list[Placed], notices: list[Notice]) -> ProgramError | None:
    """Read all statements into `placed`; the first problem is returned, not raised."""
    for match in chunks(text, start, end):
        chunk = match.group()
        if chunk[0] == "#" and "\n" not in chunk:
            continue
        try:
            statement = read_statement(chunk)
        except SyntaxProblem as problem:
            if not placed and _IMPORT.fullmatch(chunk):
                notices.append(Notice("ignored-import", "import lines have no effect", *position(text, match.start())))
                continue
            return _located(text, match.start(), problem)
        if statement is None:
            continue
        if len(placed) >= MAX_STATEMENTS:
            message = f"a program has at most {MAX_STATEMENTS} statements"
            return ProgramError("too-many", message, *position(text, match.start()))
        placed.append(Placed(match.start(), match.end(), statement))
    return None


def _located(text: str, start: int, problem: SyntaxProblem) -> ProgramError:
    return ProgramError(problem.code, problem.message, *position(text, start + problem.offset))


class _List:
    """A list that was opened; `kind` is "curves", "loops" or None."""

    __slots__ = ("items", "kind")

    def __init__(self, kind: str | None) -> None:
        self.kind = kind
        self.items: list[str] = []


class _Loop(NamedTuple):
    loop: Loop
    names: tuple[str, ...]


class _Profile(NamedTuple):
    loops: tuple[_Loop, ...]


class _Plane(NamedTuple):
    plane: AbsolutePlane | RelativePlane | Version1Plane


class _Sketch(NamedTuple):
    plane: AbsolutePlane | RelativePlane
    loops: tuple[Loop, ...]
    names: tuple[tuple[str, ...], ...]


class _Feature(NamedTuple):
    number: int
    names: tuple[tuple[str, ...], ...]


_WORDS = {
    _List: "a list",
    _Loop: "a loop",
    _Profile: "a profile",
    _Plane: "a sketch plane",
    _Sketch: "a sketch",
    _Feature: "an extrude",
    Line: "a line",
    float: "a number",
}


class _Builder:
    """Gives names their meaning, statement by statement."""

    def __init__(self, text: str, placed: list[Placed], notices: list[Notice]) -> None:
        self.text, self.placed, self.notices = text, placed, notices
        self.known: dict[str, Any] = {}
        self.numbers: dict[str, float] = {}
        self.extrudes: list[Extrude] = []
        self.curve_count = 0
        self.kinds, self.appended = _uses(placed)
        self.open: dict[str, _List] = {}
        self.steps = {
            "list": self.open_lists,
            "append": self.append,
            "number": self.number,
            "add_line": self.curve,
            "add_arc": self.curve,
            "add_circle": self.curve,
            "add_loop": self.loop,
            "add_profile": self.profile,
            "add_sketchplane": self.plane,
            "add_sketchplane_ref": self.plane_ref,
            "add_sketch": self.sketch,
            "add_extrude": self.extrude,
        }

    def run(self) -> ProgramError | None:
        """Work through the statements; the first problem is returned, not raised."""
        known = self.known
        for here in self.placed:
            statement = here.statement
            try:
                if statement.open:
                    statement = bind(statement, self.numbers)
                if statement.kind != "append":
                    for name in statement.targets:
                        if name.text in known:
                            raise SyntaxProblem("redefined-name", f"{name.text} is already defined", name.offset)
                self.here = here
                self.steps[statement.kind](statement)
            except SyntaxProblem as problem:
                return _located(self.text, here.start, self.sharpened(problem, here))
        return None

    def sharpened(self, problem: SyntaxProblem, here: Placed) -> SyntaxProblem:
        """A name that is defined further down deserves another code than one that is nowhere."""
        name = problem.name
        if not name:
            return problem
        if name in self.known:
            return SyntaxProblem("bad-type", f"{name} is {_word(self.known[name])}, not a number", problem.offset)
        if any(target.text == name for later in self.placed for target in later.statement.targets):
            message = f"{name} is defined only further down; definitions come first"
            return SyntaxProblem("use-before-def", message, problem.offset)
        return problem

    def find(self, name: Name, kind: type, *, list_kind: str | None = None) -> Any:
        """What a name stands for, which must be of the given kind."""
        found: Any = self.known.get(name.text)
        if type(found) is kind and (not isinstance(found, _List) or list_kind in (None, found.kind)):
            return found
        if found is None:
            raise SyntaxProblem("undefined-name", f"{name.text} is not defined", name.offset, name.text)
        wanted = f"a list of {list_kind}" if list_kind else _WORDS[kind]
        raise SyntaxProblem("bad-type", f"{name.text} is {_word(found)}, expected {wanted}", name.offset)

    # statements ------------------------------------------------------------------------------------------------

    def open_lists(self, statement: Statement) -> None:
        for name in statement.targets:
            if name.text in self.known:  # twice in one statement
                raise SyntaxProblem("redefined-name", f"{name.text} is already defined", name.offset)
            kind = self.kinds.get(name.text)
            self.known[name.text] = opened = _List(kind)
            self.open[kind or "unknown"] = opened

    def number(self, statement: Statement) -> None:
        name = statement.targets[0].text
        self.known[name] = self.numbers[name] = statement.values[0]

    def append(self, statement: Statement) -> None:
        target, item = statement.targets[0], statement.values[0]
        holder = self.find(target, _List)
        found = self.known.get(item.text)
        if found is None:
            raise SyntaxProblem("undefined-name", f"{item.text} is not defined", item.offset, item.text)
        if (holder.kind == "loops") != (type(found) is _Loop) or not isinstance(found, (_Loop, *Curve.__args__)):
            raise SyntaxProblem("bad-type", f"{target.text} cannot take {_word(found)}", item.offset)
        if item.text in self.appended and self.appended[item.text] > 1:
            raise SyntaxProblem("repeated-append", f"{item.text} is appended more than once", item.offset)
        holder.items.append(item.text)

    def fill(self, kind: str, name: Name) -> None:
        """The automatic append of version 2."""
        if name.text in self.appended:
            return
        holder = self.open.get(kind) or self.open.get("unknown")
        if holder is None:
            raise SyntaxProblem("no-list", f"{name.text} has no list: open one for {kind} before it", name.offset)
        holder.items.append(name.text)

    def curve(self, statement: Statement) -> None:
        self.curve_count += 1
        name = statement.targets[0]
        if self.curve_count > MAX_CURVES:
            raise SyntaxProblem("too-many", f"a program has at most {MAX_CURVES} curves", name.offset)
        self.known[name.text] = statement.curve
        self.fill("curves", name)

    def loop(self, statement: Statement) -> None:
        name, curves = statement.targets[0], statement.values[0]
        items = self.find(curves, _List, list_kind="curves").items
        if not items:
            raise SyntaxProblem("empty-loop", f"{curves.text} holds no curve", curves.offset)
        self.known[name.text] = _Loop(Loop(tuple([self.known[item] for item in items])), tuple(items))
        self.fill("loops", name)

    def profile(self, statement: Statement) -> None:
        loops = statement.values[0]
        items = self.find(loops, _List, list_kind="loops").items
        if not items:
            raise SyntaxProblem("empty-profile", f"{loops.text} holds no loop", loops.offset)
        self.known[statement.targets[0].text] = _Profile(tuple([self.known[item] for item in items]))

    def plane(self, statement: Statement) -> None:
        origin, normal, x_axis, y_axis = statement.values
        made = AbsolutePlane(origin, normal, x_axis) if y_axis is None else Version1Plane(x_axis, y_axis)
        self.known[statement.targets[0].text] = _Plane(made)

    def plane_ref(self, statement: Statement) -> None:
        extrude, origin, kind, line, reverse, angle = statement.values
        feature = self.find(extrude, _Feature)
        if kind in PLANE_ALIASES:
            self.notice("alias", f'type "{kind}" is read as "{PLANE_ALIASES[kind]}"')
            kind = PLANE_ALIASES[kind]
        place = None
        if kind == "line":
            place = self.line_place(feature, extrude, line)
        elif line is not None:
            self.notice("ignored-argument", f'line= has no meaning for type "{kind}"')
        made = RelativePlane(feature.number, origin, kind, place, reverse, angle)
        self.known[statement.targets[0].text] = _Plane(made)

    def line_place(self, feature: _Feature, extrude: Name, line: Name) -> tuple[int, int]:
        self.find(line, Line)
        for loop, names in enumerate(feature.names):
            if line.text in names:
                return loop, names.index(line.text)
        message = f"{line.text} is not part of {extrude.text}; a side plane needs a line of the extrude it refers to"
        raise SyntaxProblem("foreign-line", message, line.offset)

    def sketch(self, statement: Statement) -> None:
        plane_name, profile_name, position_, size = statement.values
        plane = self.find(plane_name, _Plane).plane
        profile = self.find(profile_name, _Profile)
        loops = tuple([loop.loop for loop in profile.loops])
        if isinstance(plane, Version1Plane):
            plane, loops = from_grid(plane, loops, position_, size, statement.offsets[3])
            if not any(notice.code == "version-1" for notice in self.notices):
                self.notice(
                    "version-1", "text of version 1: points leave the 256-grid, lengths keep its unit-cube scale"
                )
        elif size or any(position_):
            self.notice("ignored-argument", "sketch_position and sketch_size have no meaning in version 2")
        names = tuple([loop.names for loop in profile.loops])
        self.known[statement.targets[0].text] = _Sketch(plane, loops, names)

    def extrude(self, statement: Statement) -> None:
        sketch_name, operation, extent_type, one, two = statement.values
        sketch = self.find(sketch_name, _Sketch)
        if len(self.extrudes) >= MAX_EXTRUDES:
            raise SyntaxProblem("too-many", f"a program has at most {MAX_EXTRUDES} extrudes", sketch_name.offset)
        name = statement.targets[0]
        self.known[name.text] = _Feature(len(self.extrudes), sketch.names)
        self.extrudes.append(Extrude(sketch.plane, sketch.loops, operation, extent_type, one, two))

    def notice(self, code: str, message: str) -> None:
        self.notices.append(Notice(code, message, *position(self.text, self.here.start)))


def _word(found: Any) -> str:
    if isinstance(found, _List):
        return f"a list of {found.kind}" if found.kind else "a list"
    return _WORDS.get(type(found), "a curve")


def _uses(placed: list[Placed]) -> tuple[dict[str, str], dict[str, int]]:
    """What each list holds ("curves", "loops") by the commands it is handed to; how often each item is appended."""
    kinds: dict[str, str] = {}
    appended: dict[str, int] = {}
    made: dict[str, str] = {}
    for here in placed:
        statement = here.statement
        if statement.kind == "add_loop":
            kinds.setdefault(statement.values[0].text, "curves")
            made[statement.targets[0].text] = "loops"
        elif statement.kind == "add_profile":
            kinds.setdefault(statement.values[0].text, "loops")
        elif statement.kind == "append":
            item = statement.values[0].text
            appended[item] = appended.get(item, 0) + 1
            kinds.setdefault(statement.targets[0].text, made.get(item, "curves"))
    return kinds, appended
