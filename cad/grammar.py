"""An incremental parser: reads a program character by character and knows at every place what may come next.

    state = Grammar("official").start()
    state = state.advance("SketchPlane0 = add_")      # None as soon as no program begins like that
    state.complete                                    # the text so far is a whole program
    state.ending()                                    # a short text that completes it

The language is the one `emit` writes in one style: the fixed names in their fixed order, declared names only, loops
that close, lines of the referenced extrude only, no zero radius, height or direction. Every state has a continuation,
and `parse` accepts every completed text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from mm.cad.emitter import OFFICIAL, Layout, Style, canonical_layout
from mm.cad.limits import MAX_CURVES, MAX_EXTRUDES
from mm.cad.matchers import Choice, Literal, Matcher, Number
from mm.cad.planes import PlaneError, orthonormal
from mm.cad.vectors import cross2

Step = Callable[["Context", str], tuple["Context", tuple["Item", ...]]]


_NOTHING = Literal("")
"""Matches at once: its step decides, when its turn has come, what follows."""


class Item(NamedTuple):
    """A matcher, and what follows from its text."""

    matcher: Matcher
    then: Step | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """What has been said."""

    lines: tuple[tuple[str, ...], ...] = ()
    """Names of the lines of each finished extrude."""
    here: tuple[str, ...] = ()
    """Names of the lines of this extrude."""
    numbers: tuple[str, ...] = ()
    """Texts of the components of the vectors of this statement."""
    loop: int = 0
    curve: int = 0
    total: int = 0
    """Curves of the program."""
    first: tuple[str, str] = ("", "")
    """Start of the loop."""
    last: tuple[str, str] = ("", "")
    """End of the latest curve."""
    arcs: bool = False
    """The loop has an arc."""
    complete: bool = False

    @property
    def extrude(self) -> int:
        """Index of the current extrude."""
        return len(self.lines)

    def value(self, i: int) -> float:
        """A captured component."""
        return float(self.numbers[i])


@dataclass(frozen=True, slots=True)
class State:
    """A place in a program text; immutable."""

    context: Context
    queue: tuple[Item, ...]
    partial: str = ""
    """Text of the first item so far."""

    @property
    def complete(self) -> bool:
        """Whether the text so far is a whole program."""
        return self.context.complete and not self.partial

    def advance(self, text: str) -> State | None:
        """Read more text; None if no program begins like that."""
        state: State | None = self
        for letter in text:
            if state is None:
                return None
            state = state.step(letter)
        return state

    def step(self, letter: str) -> State | None:
        """Read one character."""
        state = self
        while state.queue:
            matcher, partial = state.queue[0].matcher, state.partial + letter
            if matcher.goes_on(partial):
                if not isinstance(matcher, Number) and matcher.done(partial):
                    return state.taken(partial)
                return replace(state, partial=partial)
            if not isinstance(matcher, Number) or not matcher.done(state.partial):
                return None
            state = state.taken(state.partial)
        return None

    def taken(self, text: str) -> State:
        """The state after the first item has matched `text`."""
        context, queue = self.context, self.queue
        while True:
            item, queue = queue[0], queue[1:]
            if item.then is not None:
                context, more = item.then(context, text)
                queue = (*more, *queue)
            if not queue or queue[0].matcher != _NOTHING:
                return State(context, queue)
            text = ""

    def ending(self) -> str:
        """A short text that completes the program."""
        state, text = self, ""
        while not state.complete:
            tail = state.queue[0].matcher.ending(state.partial)
            text += tail
            state = state.taken(state.partial + tail)
        return text


class Grammar:
    """The programs of one style.

    Args:
        style: "official" or "canonical", as in `emit`.
        max_extrudes: Longest program.
        max_curves: Most curves in a loop.
    """

    def __init__(self, style: Style = "official", *, max_extrudes: int = MAX_EXTRUDES, max_curves: int = 128) -> None:
        if style not in ("official", "canonical"):
            raise ValueError(f'style must be "official" or "canonical", got {style!r}')
        self.layout: Layout = OFFICIAL if style == "official" else canonical_layout(4)
        self.max_extrudes = min(max_extrudes, MAX_EXTRUDES)
        self.max_curves = max(4, max_curves)

    def start(self) -> State:
        """The place before the first character."""
        return State(Context(), self.plane(Context()))

    # planes ----------------------------------------------------------------------------------------------------

    def plane(self, context: Context) -> tuple[Item, ...]:
        """The next feature begins."""
        i, layout = context.extrude, self.layout
        head = f"SketchPlane{i}{layout.assign}"
        absolute = f"{head}add_sketchplane({layout.opening}origin{layout.equals}["
        relative = [f"{head}add_sketchplane_ref({layout.opening}Extrude{k}{layout.comma}" for k in range(i)]

        def then(context: Context, text: str) -> tuple[Context, tuple[Item, ...]]:
            context = replace(context, numbers=(), complete=False)
            if text == absolute:
                return context, self.absolute()
            return context, self.relative(relative.index(text), context)

        return (Item(Choice((absolute, *relative)), then),)

    def absolute(self) -> tuple[Item, ...]:
        layout = self.layout
        c, eq = layout.comma, layout.equals
        return (
            *self.vector(3),
            Item(Literal(f"{c}normal{eq}[")),
            *self.vector(3, "axis", self.normal_rule),
            Item(Literal(f"{c}x_axis{eq}[")),
            *self.vector(3, "axis", self.x_axis_rule),
            Item(Literal(")\n"), self.lists),
        )

    @staticmethod
    def normal_rule(context: Context) -> Callable[[float], bool] | None:
        values = [float(text) for text in context.numbers[3:]]
        return (lambda v: v != 0) if len(values) == 2 and not any(values) else None

    @staticmethod
    def x_axis_rule(context: Context) -> Callable[[float], bool] | None:
        values = [float(text) for text in context.numbers[3:]]
        normal, x_axis = values[:3], values[3:]
        if len(x_axis) == 1 and not any(normal[:2]) and x_axis[0] == 0:
            return lambda v: v != 0
        if len(x_axis) != 2:
            return None

        def spans(v: float) -> bool:
            try:
                orthonormal((normal[0], normal[1], normal[2]), (x_axis[0], x_axis[1], v))
            except PlaneError:
                return False
            return True

        return spans

    def relative(self, target: int, context: Context) -> tuple[Item, ...]:
        layout, c = self.layout, self.layout.comma
        loose, tight = layout.loose_equals, layout.equals
        faces = ("sameplane", "extent_one", "extent_two")
        tails = {eq: (")\n", f"{c}reverse{eq}True)\n", f"{c}angle{eq}") for eq in dict.fromkeys((loose, tight))}
        ends = [f'{c}type{loose}"{face}"{tail}' for face in faces for tail in tails[loose]]
        sides = [
            f'{c}type{tight}"line"{c}line{tight}{name}{tail}' for name in context.lines[target] for tail in tails[tight]
        ]

        def then(context: Context, text: str) -> tuple[Context, tuple[Item, ...]]:
            if text.endswith(")\n"):
                return self.lists(context, text)
            eq = tight if '"line"' in text else loose
            after = Choice((")\n", f"{c}reverse{eq}True)\n"))
            return context, (Item(Number("angle")), Item(after, self.lists))

        def origin(context: Context, text: str) -> tuple[Context, tuple[Item, ...]]:
            chosen = ends if loose == tight or text == f"origin{loose}[" else []
            chosen = chosen + (sides if loose == tight or text == f"origin{tight}[" else [])
            return context, (*self.vector(2), Item(Choice(tuple(chosen)), then))

        # The space before "=" already says which kind of reference follows.
        openings = [f"origin{loose}["] + ([f"origin{tight}["] if sides and tight != loose else [])
        return (Item(Choice(tuple(openings)), origin),)

    # loops -----------------------------------------------------------------------------------------------------

    def lists(self, context: Context, text: str) -> tuple[Context, tuple[Item, ...]]:
        i, a = context.extrude, self.layout.assign
        context = replace(context, here=(), loop=0)
        return context, (Item(Literal(f"Loops{i}{a}[]\n"), lambda context, text: (context, self.loop(context))),)

    def loop(self, context: Context) -> tuple[Item, ...]:
        i, j, a = context.extrude, context.loop, self.layout.assign

        def then(context: Context, text: str) -> tuple[Context, tuple[Item, ...]]:
            context = replace(context, curve=0, arcs=False, first=("", ""), last=("", ""))
            return context, self.curve(context)

        return (Item(Literal(f"Curves{i}_{j}{a}[]\n"), then),)

    def curve(self, context: Context) -> tuple[Item, ...]:
        """The next curve, or the end of the loop."""
        i, j, k = context.extrude, context.loop, context.curve
        a, eq, layout = self.layout.assign, self.layout.equals, self.layout
        place = f"{i}_{j}_{k}"
        close = f"Loop{i}_{j}{a}add_loop(Curves{i}_{j})\n"
        line = f"Line{place}{a}add_line(start{eq}["
        arc = f"Arc{place}{a}add_arc(start{eq}["
        circle = f"Circle{place}{a}add_circle(center{eq}["
        enough = k >= 3 or (k >= 2 and context.arcs)
        closed = k > 0 and [float(v) for v in context.first] == [float(v) for v in context.last]
        following = (close,) if closed and enough else (line, arc)
        options = (circle, line, arc) if k == 0 else following

        def then(context: Context, text: str) -> tuple[Context, tuple[Item, ...]]:
            if text == close:
                return context, self.after_loop(context)
            context = replace(context, numbers=(), total=context.total + 1)
            if text == circle:
                radius = Item(Number(rule=lambda v: v != 0))
                close_only = replace(context, curve=1)
                return close_only, (
                    *self.vector(2),
                    Item(Literal(f"{layout.comma}radius{eq}")),
                    radius,
                    Item(Literal(")\n" + close), lambda context, text: (context, self.after_loop(context))),
                )
            return context, self.ends(context, is_arc=text == arc)

        return (Item(Choice(options), then),)

    def ends(self, context: Context, *, is_arc: bool) -> tuple[Item, ...]:
        """Start, end and, for an arc, the point between."""
        c, eq = self.layout.comma, self.layout.equals
        start: tuple[Item, ...] = self.vector(2)
        if context.curve:  # where the curve before ends
            joints = self.same_point(context.last)

            def remembered(context: Context, text: str) -> tuple[Context, tuple[Item, ...]]:
                return replace(context, numbers=context.last), ()

            start = (Item(Choice(joints), remembered),)
        last = context.curve + 1 >= self.max_curves or context.total + 1 >= MAX_CURVES
        goal = context.first if context.curve >= 2 or (context.curve == 1 and (context.arcs or is_arc)) else ("", "")
        if last:
            end: tuple[Item, ...] = (Item(Literal(f"{context.first[0]},{context.first[1]}]"), _keep_vector),)
        else:
            end = self.vector(2, rule=self.end_rule, goal=goal)
        items = (*start, Item(Literal(f"{c}end{eq}[")), *end)
        if is_arc:
            items = (*items, Item(Literal(f"{c}mid{eq}[")), *self.vector(2, rule=self.mid_rule))
        return (*items, Item(Literal(")\n"), lambda context, text: self.after_curve(context, is_arc)))

    def same_point(self, point: tuple[str, str]) -> tuple[str, ...]:
        """The texts of a point that was written before: as it was, or with another sign of zero."""
        values = [[float(text)] if float(text) else [0.0, -0.0] for text in point]
        written = (self.layout.vector((x, y))[1:] for x in values[0] for y in values[1])
        return tuple(dict.fromkeys([f"{point[0]},{point[1]}]", *written]))

    @staticmethod
    def end_rule(context: Context) -> Callable[[float], bool] | None:
        """An end differs from its start."""
        x0, y0, *rest = (float(text) for text in context.numbers)
        return (lambda v: v != y0) if rest and rest[0] == x0 else None

    @staticmethod
    def mid_rule(context: Context) -> Callable[[float], bool] | None:
        """The three points of an arc are on no line."""
        x0, y0, x1, y1, *rest = (float(text) for text in context.numbers)
        if not rest:
            return (lambda v: v != x0) if x0 == x1 else None
        return lambda v: cross2((x1 - x0, y1 - y0), (rest[0] - x0, v - y0)) != 0

    def after_curve(self, context: Context, is_arc: bool) -> tuple[Context, tuple[Item, ...]]:
        numbers = context.numbers
        name = f"Line{context.extrude}_{context.loop}_{context.curve}"
        context = replace(
            context,
            first=(numbers[0], numbers[1]) if context.curve == 0 else context.first,
            last=(numbers[2], numbers[3]),
            here=context.here if is_arc else (*context.here, name),
            curve=context.curve + 1,
            arcs=context.arcs or is_arc,
        )
        return context, self.curve(context)

    # features --------------------------------------------------------------------------------------------------

    def after_loop(self, context: Context) -> tuple[Item, ...]:
        """Another loop, or the profile, the sketch and the extrude."""
        i, a, eq, c = context.extrude, self.layout.assign, self.layout.equals, self.layout.comma
        profile = f"Profile{i}{a}add_profile(Loops{i})\n"
        sketch = f"Sketch{i}{a}add_sketch(sketch_plane{eq}SketchPlane{i}{c}profile{eq}Profile{i})\n"
        extrude = f"Extrude{i}{a}add_extrude(sketch{eq}Sketch{i}{self.layout.breaking}operation{eq}"
        another = f"Curves{i}_{context.loop + 1}{a}[]\n"
        # A loop may need four more curves; keep room for them.
        options = (profile,) if context.total + 8 > MAX_CURVES else (profile, another)

        def then(context: Context, text: str) -> tuple[Context, tuple[Item, ...]]:
            if text == another:
                context = replace(context, loop=context.loop + 1, curve=0, arcs=False, first=("", ""), last=("", ""))
                return context, self.curve(context)
            return replace(context, numbers=()), (
                Item(Literal(sketch + extrude)),
                Item(Choice(("0", "1", "2", "3"))),
                Item(Literal(f"{c}type{eq}")),
                Item(Choice(("0", "1", "2"))),
                Item(Literal(f"{c}extent_one{eq}")),
                Item(Number(rule=lambda v: v != 0)),
                Item(Literal(f"{c}extent_two{eq}")),
                Item(Number()),
                Item(Literal(")\n"), self.finished),
            )

        return (Item(Choice(options), then),)

    def finished(self, context: Context, text: str) -> tuple[Context, tuple[Item, ...]]:
        context = replace(context, lines=(*context.lines, context.here), numbers=(), complete=True)
        room = context.extrude < self.max_extrudes and context.total + 8 <= MAX_CURVES
        return context, self.plane(context) if room else ()

    # vectors ---------------------------------------------------------------------------------------------------

    def vector(
        self,
        size: int,
        kind: str = "length",
        rule: Callable[[Context], Callable[[float], bool] | None] | None = None,
        goal: tuple[str, str] = ("", ""),
    ) -> tuple[Item, ...]:
        """Components and the closing bracket; a rule may depend on the components before."""

        def component(context: Context, i: int) -> tuple[Item, ...]:
            found = Number(kind, rule(context) if rule else None, goal[i] if i < 2 else "")
            if i == size - 1:
                return Item(found, keep), Item(Literal("]"))
            return Item(found, keep), Item(Literal(","), lambda context, text: (context, component(context, i + 1)))

        def keep(context: Context, text: str) -> tuple[Context, tuple[Item, ...]]:
            return replace(context, numbers=(*context.numbers, text)), ()

        return (Item(_NOTHING, lambda context, text: (context, component(context, 0))),)


def _keep_vector(context: Context, text: str) -> tuple[Context, tuple[Item, ...]]:
    x, y = text[:-1].split(",")
    return replace(context, numbers=(*context.numbers, x, y)), ()
