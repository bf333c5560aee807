"""Captions of scenes and clips: one line, or several sentences that tell everything.

A long caption names every thing with its size, texture, colour and place, how neighbours stand to each other, and the
background; from its words alone the scene could be drawn again. With `filler` it becomes as long as wanted, the facts
coming last, so that a model that reads only the first words can't tell two scenes apart.
"""

from __future__ import annotations

from itertools import pairwise

from mm.data.frames import Clip
from mm.data.phrasing import Phrasing, choose, listed, with_article
from mm.data.questions import side_of
from mm.data.scenes import Scene, Thing
from mm.data.split import Seed, generator
from mm.data.words import DIGITS

SHORT = (
    "{things} on a {ground} background.",
    "a picture of {things} on a {ground} background.",
    "on a {ground} background there is {things}.",
    "we see {things} in front of a {ground} background.",
)
OPENINGS = (
    "the picture shows {count} {noun}.",
    "there {verb} {count} {noun} in this picture.",
    "you can see {count} {noun} here.",
)
THINGS = (
    "{a_thing} is in the {place}.",
    "in the {place} there is {a_thing}.",
    "{a_thing} stands in the {place}.",
    "the {place} contains {a_thing}.",
)
DIGIT_NOTES = ("the digit {digit} is written on the {name}.", "the {name} shows the digit {digit}.")
RELATIONS = ("the {name} is {side} the {other}.", "{side} the {other} you can see the {name}.")
GROUNDS_FORMS = (
    "the background is {ground} and {pattern}.",
    "all this is drawn on a {pattern} {ground} surface.",
    "behind it all lies a {ground} {pattern} background.",
)
FILLER = (
    "this is a picture and you can look at it.",
    "there is more to describe in a long text.",
    "each part of the picture has its place.",
    "we look at the scene from the front.",
    "here is one more sentence about the scene.",
    "not all of it is clear at first.",
)
CLIPS = (
    "{a_thing} moves {way} over a {pattern} {ground} background.",
    "in this clip {a_thing} goes {way} in front of a {pattern} {ground} background.",
    "on a {pattern} {ground} background you see {a_thing} moving {way}.",
)
WAYS = {"left": "to the left", "right": "to the right", "up": "up", "down": "down"}


def short_caption(scene: Scene, seed: Seed, *, phrasing: Phrasing = "all") -> str:
    """One sentence with the colour and shape of every thing and the background colour."""
    rng = generator(seed, "short caption")
    order = rng.permutation(len(scene.things))
    things = listed([with_article(scene.things[index].name) for index in order])
    return choose(rng, SHORT, phrasing).format(things=things, ground=scene.ground)


def _full_name(thing: Thing) -> str:
    return f"a {thing.size} {thing.texture} {thing.colour} {thing.shape}"


def long_caption(scene: Scene, seed: Seed, *, phrasing: Phrasing = "all", filler: int = 0) -> str:
    """Several sentences that tell everything about the scene.

    Args:
        scene: What to describe; things come in a random order.
        seed: What order and wording are drawn from.
        phrasing: Which wordings.
        filler: At least so many words without any information come first.
    """
    rng = generator(seed, "long caption")
    sentences: list[str] = []
    while len(" ".join(sentences).split()) < filler:
        sentences.append(FILLER[rng.integers(len(FILLER))])
    count = len(scene.things)
    number = {"count": DIGITS[count]}
    number |= {"noun": "thing" if count == 1 else "things", "verb": "is" if count == 1 else "are"}
    sentences.append(choose(rng, OPENINGS, phrasing).format(**number))
    ordered = [scene.things[index] for index in rng.permutation(count)]
    for thing in ordered:
        sentences.append(choose(rng, THINGS, phrasing).format(a_thing=_full_name(thing), place=thing.place))
        if thing.digit:
            sentences.append(choose(rng, DIGIT_NOTES, phrasing).format(name=thing.name, digit=thing.digit))
    for thing, other in pairwise(ordered):
        for side in side_of(thing, other)[:1]:
            form = choose(rng, RELATIONS, phrasing)
            sentences.append(form.format(name=thing.name, other=other.name, side=side))
    sentences.append(choose(rng, GROUNDS_FORMS, phrasing).format(ground=scene.ground, pattern=scene.pattern))
    return " ".join(sentences)


def clip_caption(clip: Clip, seed: Seed, *, phrasing: Phrasing = "all") -> str:
    """One sentence with colour, shape, direction and background of a clip."""
    rng = generator(seed, "clip caption")
    scene = clip.scenes[0]
    return choose(rng, CLIPS, phrasing).format(
        a_thing=with_article(clip.thing.name), way=WAYS[clip.direction], pattern=scene.pattern, ground=scene.ground
    )
