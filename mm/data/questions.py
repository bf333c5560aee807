"""Questions about scenes with one right answer each.

"Easy" questions ask for what survives halving the picture; "hard" ones for the tiny digit on a thing, which does not.
Answers to yes/no questions are decided before the question is made, so both occur equally often, and the things asked
about in "no" questions come from the same list as those in "yes" questions: the words alone tell nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np

from mm.data.phrasing import Phrasing, choose, with_article
from mm.data.sample import VisualSample
from mm.data.scenes import Scene, SceneConfig, Thing, render, sample_scene
from mm.data.split import Seed, balanced, generator
from mm.data.words import COLOURS, DIGITS, SHAPES

T = TypeVar("T")
Pair = tuple[str, str]
ALL_PAIRS: tuple[Pair, ...] = tuple((shape, colour) for shape in SHAPES for colour in COLOURS)
MARGIN = 0.12
"""Two things count as left and right of each other only if they are this far apart, as a fraction of the side."""

FORMS: dict[str, tuple[str, ...]] = {
    "colour": ("what colour is the {shape}?", "which colour does the {shape} have?"),
    "shape": ("what shape is the {colour} thing?", "which shape does the {colour} object have?"),
    "texture": ("what pattern is on the {name}?", "which texture does the {name} have?"),
    "size": ("is the {name} small or large?", "what size is the {name}?"),
    "place": ("where is the {name}?", "in which place do you see the {name}?"),
    "count": ("how many things are there?", "what number of objects can you see?"),
    "count_colour": ("how many {colour} things are there?", "what number of {colour} objects can you see?"),
    "count_shape": ("how many things of the shape {shape} are there?", "what number of {shape} objects can you see?"),
    "exists": ("is there {a_name}?", "can you see {a_name}?"),
    "absent": ("is there no {name}?", "is the picture without {a_name}?"),
    "relation": ("is the {name} {side} the {other}?", "do you see the {name} {side} the {other}?"),
    "background": ("what colour is the background?", "which colour does the background have?"),
    "digit": ("what digit is on the {name}?", "which digit does the {name} have?"),
}
"""Kind of question -> its wordings; the last one is held out for paraphrase tests."""
HARD_KINDS = ("digit",)
EASY_KINDS = tuple(kind for kind in FORMS if kind not in HARD_KINDS)
SIDES = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class Question:
    """A question, its answer, and whether half the resolution is enough to answer it."""

    kind: str
    question: str
    answer: str

    @property
    def level(self) -> Literal["easy", "hard"]:
        """Whether the answer survives halving the picture."""
        return "hard" if self.kind in HARD_KINDS else "easy"


@dataclass(frozen=True)
class _Context:
    """What a maker of questions may use: the random numbers, the wanted yes or no, and which pairs can occur."""

    rng: np.random.Generator
    yes: bool
    pairs: Sequence[Pair]

    def one_of(self, items: Sequence[T]) -> T:
        return items[int(self.rng.integers(len(items)))]


Slots = dict[str, str]
Maker = Callable[[Scene, _Context], tuple[Slots, str] | None]


def _names(thing: Thing) -> Slots:
    return {"name": thing.name, "a_name": with_article(thing.name), "shape": thing.shape, "colour": thing.colour}


def _attribute(read: Callable[[Thing], str | None], unique: Callable[[Thing], str] | None = None) -> Maker:
    """Asks for a property of a thing; with `unique`, only of things whose value of it no other thing shares."""

    def make(scene: Scene, context: _Context) -> tuple[Slots, str] | None:
        counts = Counter(map(unique, scene.things)) if unique else {}
        fit = [
            (thing, value)
            for thing in scene.things
            if (value := read(thing)) and (unique is None or counts[unique(thing)] == 1)
        ]
        if not fit:
            return None
        thing, value = context.one_of(fit)
        return _names(thing), value

    return make


def _count(scene: Scene, _: _Context) -> tuple[Slots, str]:
    return {}, DIGITS[len(scene.things)]


def _count_of(attribute: Literal["colour", "shape"]) -> Maker:
    """Counts things of one colour or shape; half of the time of one that is there."""

    def make(scene: Scene, context: _Context) -> tuple[Slots, str]:
        present = [getattr(thing, attribute) for thing in scene.things]
        every = tuple(dict.fromkeys(pair[("shape", "colour").index(attribute)] for pair in context.pairs))
        word = context.one_of(present if context.rng.random() < 0.5 else every)
        return {attribute: word}, DIGITS[present.count(word)]

    return make


def _named_pair(scene: Scene, context: _Context, present: bool) -> Slots | None:
    """A shape and colour that is, or is not, in the scene."""
    there = {(thing.shape, thing.colour) for thing in scene.things}
    fit = [pair for pair in context.pairs if (pair in there) == present]
    if not fit:
        return None
    shape, colour = context.one_of(fit)
    return _names(Thing(shape=shape, colour=colour))


def _exists(scene: Scene, context: _Context) -> tuple[Slots, str] | None:
    slots = _named_pair(scene, context, present=context.yes)
    return None if slots is None else (slots, "yes" if context.yes else "no")


def _absent(scene: Scene, context: _Context) -> tuple[Slots, str] | None:
    slots = _named_pair(scene, context, present=not context.yes)
    return None if slots is None else (slots, "yes" if context.yes else "no")


def side_of(thing: Thing, other: Thing) -> tuple[str, ...]:
    """On which sides of `other` the thing clearly is."""
    dx, dy = thing.x - other.x, thing.y - other.y
    holds = (dx < -MARGIN, dx > MARGIN, dy < -MARGIN, dy > MARGIN)
    return tuple(side for side, true in zip(SIDES, holds, strict=True) if true)


def _relation(scene: Scene, context: _Context) -> tuple[Slots, str] | None:
    """Whether a thing is on a side of another; for "no" the opposite of a true side is asked."""
    true = [(a, b, side) for a in scene.things for b in scene.things for side in side_of(a, b)]
    if not true:
        return None
    thing, other, side = context.one_of(true)
    if not context.yes:
        side = SIDES[SIDES.index(side) ^ 1]
    return {**_names(thing), "other": other.name, "side": side}, "yes" if context.yes else "no"


MAKERS: dict[str, Maker] = {
    "colour": _attribute(lambda thing: thing.colour, lambda thing: thing.shape),
    "shape": _attribute(lambda thing: thing.shape, lambda thing: thing.colour),
    "texture": _attribute(lambda thing: thing.texture),
    "size": _attribute(lambda thing: thing.size),
    "place": _attribute(lambda thing: thing.place),
    "count": _count,
    "count_colour": _count_of("colour"),
    "count_shape": _count_of("shape"),
    "exists": _exists,
    "absent": _absent,
    "relation": _relation,
    "background": lambda scene, _: ({}, scene.ground),
    "digit": _attribute(lambda thing: thing.digit),
}


def ask(
    scene: Scene,
    seed: Seed,
    *,
    kinds: Sequence[str] = EASY_KINDS,
    pairs: Sequence[Pair] = ALL_PAIRS,
    phrasing: Phrasing = "all",
) -> Question:
    """One question about `scene`.

    Args:
        scene: What the picture shows.
        seed: What the question is drawn from; yes and no alternate exactly over seeds.
        kinds: Kinds of questions to choose from; one that does not fit this scene gives way to another.
        pairs: (shape, colour) pairs that the data set can contain, `SceneConfig.allowed_pairs`.
        phrasing: Which wordings.

    Raises:
        ValueError: unknown kind, or no kind fits the scene.

    Example:
        >>> from mm.data.scenes import Scene, Thing
        >>> ask(Scene(things=(Thing(shape="star", colour="red"),)), 0, kinds=["colour"], phrasing="seen")
        Question(kind='colour', question='what colour is the star?', answer='red')
    """
    unknown = sorted(set(kinds) - set(MAKERS))
    if unknown or not kinds:
        raise ValueError(f"kinds of questions must be some of {', '.join(MAKERS)}; got {', '.join(unknown) or 'none'}")
    rng = generator(seed, "question")
    context = _Context(rng, balanced(seed, 2, "yes no") == 0, pairs)
    for index in rng.permutation(len(kinds)):
        kind = kinds[index]
        made = MAKERS[kind](scene, context)
        if made is not None:
            slots, answer = made
            return Question(kind, choose(rng, FORMS[kind], phrasing).format(**slots), answer)
    raise ValueError(f"none of the questions {', '.join(kinds)} fits a scene of {len(scene.things)} things: {scene}")


def scene_sample(
    seed: int,
    config: SceneConfig | None = None,
    *,
    size: int = 64,
    kinds: Sequence[str] = EASY_KINDS,
    phrasing: Phrasing = "seen",
    turns: int = 1,
) -> VisualSample:
    """The scene of one seed, drawn at `size` pixels, with `turns` questions; all but the last are earlier turns."""
    config = config or SceneConfig()
    scene = sample_scene(seed, config)
    about = partial(ask, scene, kinds=kinds, pairs=config.allowed_pairs, phrasing=phrasing)
    asked = about(seed)
    meta: dict[str, Any] = {"seed": seed, "kind": asked.kind, "level": asked.level}
    if turns > 1:
        earlier = [about(generator(seed, f"turn {turn}")) for turn in range(turns - 1)]
        meta["history"] = [(question.question, question.answer) for question in earlier]
    return VisualSample([render(scene, size)], asked.question, asked.answer, meta=meta)


def detail_sample(
    seed: int,
    config: SceneConfig | None = None,
    *,
    easy: Sequence[str] = ("colour", "place"),
    phrasing: Phrasing = "seen",
) -> VisualSample:
    """Easy and hard questions on identical pictures: an even seed and the next one share theirs.

    The picture has full resolution, `config.full_size`. The even seed asks an easy question, the odd one for a tiny
    digit. The default easy kinds have eight and nine answers and the digit ten, so guessing gains at most 1/8.

    Raises:
        ValueError: `config` is without marks.
    """
    config = config or SceneConfig(marks=True)
    if not config.marks:
        raise ValueError("questions about fine detail need scenes with marks: SceneConfig(marks=True)")
    scene = sample_scene(seed - seed % 2, config)
    kinds = HARD_KINDS if seed % 2 else easy
    asked = ask(scene, seed, kinds=kinds, pairs=config.allowed_pairs, phrasing=phrasing)
    meta = {"seed": seed, "kind": asked.kind, "level": asked.level}
    return VisualSample([render(scene, config.full_size)], asked.question, asked.answer, meta=meta)
