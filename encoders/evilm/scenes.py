"""Moving things with captions and questions: the procedural video-text data of the tiny model.

One thing crosses the picture. Colour, shape, size and direction are what captions and questions are about; texture,
ground and pattern mean nothing. The path is drawn before the direction decides how it is walked, so a set of frames, or
one frame drawn at random, says nothing about left or right. Each colour and shape is held out in one of its four
directions: 64 combinations that training never shows.
Dims: F frames, S side in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from einops import rearrange

from mm.data.drawing import around, coverage
from mm.data.frames import Clip
from mm.data.scenes import Pairs, Scene, Thing, render
from mm.data.split import Seed, balanced, generator
from mm.data.words import COLOURS, DIRECTIONS, GROUND_PATTERNS, GROUNDS, SHAPES, SIZES, TEXTURES

RADII = {"small": 0.12, "large": 0.2}
"""Size word -> largest radius, as a fraction of the side."""
FORWARD = ("right", "down")
CAPTION = "a {size} {colour} {shape} moves {direction}"
QUESTIONS = {
    "shape": "which shape is the thing?",
    "colour": "what colour is the thing?",
    "size": "is the thing small or large?",
    "direction": "in which direction does the thing move?",
    "sideways": "does the thing move left or right?",
    "upright": "does the thing move up or down?",
}
"""Kind -> question. The last two name the choices, so that one frame leaves a coin to toss."""
ANSWERS = (*SHAPES, *COLOURS, *SIZES, *DIRECTIONS)
"""Every answer, each one word."""
TRAINING_TEXTURES = ("plain", "striped", "dotted")
TRAINING_PATTERNS = ("plain", "striped", "grainy")
"""Textures and patterns of training; "checked" is left for the texture shift."""
Combination = tuple[str, str, str]


def held_out(combination: Combination) -> bool:
    """Whether a (colour, shape, direction) is one of the 64 of 256 that training leaves out."""
    colour, shape, direction = combination
    return (tuple(COLOURS).index(colour) + SHAPES.index(shape)) % 4 == DIRECTIONS.index(direction)


def combinations(pairs: Pairs = "all") -> tuple[Combination, ...]:
    """(colour, shape, direction): all 256, the 192 "seen" ones, or the 64 "held_out" ones."""
    if pairs not in ("all", "seen", "held_out"):
        raise ValueError(f"pairs must be 'all', 'seen' or 'held_out', got {pairs!r}")
    every = ((colour, shape, direction) for colour in COLOURS for shape in SHAPES for direction in DIRECTIONS)
    return tuple(one for one in every if pairs == "all" or held_out(one) == (pairs == "held_out"))


@dataclass(frozen=True, kw_only=True)
class MovingConfig:
    """What clips show."""

    num_frames: int = 4
    """Frames per clip (F), at least 2."""
    size: int = 64
    """Side of a frame in pixels (S)."""
    textures: tuple[str, ...] = TRAINING_TEXTURES
    """Texture words of the thing."""
    patterns: tuple[str, ...] = TRAINING_PATTERNS
    """Pattern words of the ground."""
    grounds: tuple[str, ...] = tuple(GROUNDS)
    """Colour words of the ground."""
    pairs: Pairs = "seen"
    """Combinations of colour, shape and direction: all, without the held-out ones, or only those."""

    def __post_init__(self) -> None:
        if self.num_frames < 2:
            raise ValueError(f"a clip needs at least 2 frames to show a direction, got {self.num_frames}")
        for name, allowed in (("textures", TEXTURES), ("patterns", GROUND_PATTERNS), ("grounds", tuple(GROUNDS))):
            unknown = sorted(set(getattr(self, name)) - set(allowed))
            if unknown or not getattr(self, name):
                raise ValueError(f"{name} must be some of {', '.join(allowed)}; got {', '.join(unknown) or 'nothing'}")
        combinations(self.pairs)


SHIFTED = MovingConfig(textures=("checked",), patterns=("checked",))
"""The same meanings under a texture and a pattern that training never shows."""


class MovingClip(Clip):
    """A thing that moves, with its caption and the questions about it."""

    @property
    def caption(self) -> str:
        """What the clip shows, in one sentence."""
        thing = self.thing
        return CAPTION.format(size=thing.size, colour=thing.colour, shape=thing.shape, direction=self.direction)

    def ask(self, kind: str) -> tuple[str, str]:
        """Question and answer of one kind, see `QUESTIONS`; "choice" takes the one that fits the axis of motion."""
        if kind == "choice":
            kind = "sideways" if self.direction in ("left", "right") else "upright"
        moving = kind in ("direction", "sideways", "upright")
        return QUESTIONS[kind], self.direction if moving else getattr(self.thing, kind)

    def covered(self, patch: int) -> np.ndarray:
        """Patches of `patch` x `patch` pixels that the thing touches, (F, S / patch, S / patch) bool."""
        return np.stack([_covered(scene.things[0], self.frames.shape[1], patch) for scene in self.scenes])


def moving_clip(seed: Seed, config: MovingConfig | None = None, combination: Combination | None = None) -> MovingClip:
    """The clip of one seed.

    Args:
        seed: What everything is drawn from.
        config: What may occur.
        combination: (colour, shape, direction) instead of a drawn one.

    Example:
        >>> clip = moving_clip(0, combination=("red", "star", "left"))
        >>> clip.frames.shape, clip.ask("colour")
        ((4, 64, 64, 3), ('what colour is the thing?', 'red'))
    """
    config = config or MovingConfig()
    if combination is None:
        allowed = combinations(config.pairs)
        combination = allowed[balanced(seed, len(allowed), "combination")]
    rng = generator(seed, "moving")
    colour, shape, direction = combination
    size = SIZES[rng.integers(len(SIZES))]
    radius = float(RADII[size] * rng.uniform(0.92, 1.0))
    travel = rng.uniform(0.35, 1.0 - 2 * radius)
    start = rng.uniform(radius, 1.0 - radius - travel)
    across = rng.uniform(radius, 1.0 - radius)
    path = np.linspace(start, start + travel, config.num_frames)
    path = path if direction in FORWARD else path[::-1]
    texture, pattern, ground = (
        words[rng.integers(len(words))] for words in (config.textures, config.patterns, config.grounds)
    )
    thing = Thing(shape=shape, colour=colour, size=size, texture=texture, radius=radius)
    base = Scene(things=(thing,), ground=ground, pattern=pattern, grain_seed=int(rng.integers(2**31)))
    sideways = direction in ("left", "right")
    places = [(place, across) if sideways else (across, place) for place in path]
    scenes = tuple(replace(base, things=(replace(thing, x=float(x), y=float(y)),)) for x, y in places)
    return MovingClip(np.stack([render(scene, config.size) for scene in scenes]), scenes, direction)


def moving_clips(
    seeds: Sequence[int], config: MovingConfig | None = None, every: Sequence[Combination] | None = None
) -> list[MovingClip]:
    """One clip per seed; `every` names the combinations, in turn."""
    return [moving_clip(seed, config, every[i % len(every)] if every else None) for i, seed in enumerate(seeds)]


def _covered(thing: Thing, side: int, patch: int) -> np.ndarray:
    """Patches with at least one pixel half inside the thing, (S / patch, S / patch) bool."""
    rows, columns, u, v = around(thing.x, thing.y, thing.radius, side)
    inside = np.zeros((side, side), bool)
    inside[rows, columns] = coverage(thing.shape, u, v, thing.radius * side) >= 0.5
    count = side // patch
    cells = rearrange(inside[: count * patch, : count * patch], "(h p) (w q) -> h w (p q)", p=patch, q=patch)
    return np.asarray(cells.any(-1))
