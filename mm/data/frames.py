"""Moving things: short clips whose direction only the order of the frames tells.

The path is drawn first and the direction decides whether it is walked forwards or backwards. The frames of a thing
that moves left are therefore exactly the frames of one that moves right, in reverse: a model that sees frames as a
set is at chance.

Dims: F frames, H = W frame side in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mm.data.sample import VisualSample
from mm.data.scenes import Pairs, Scene, Thing, render
from mm.data.split import Seed, balanced, generator
from mm.data.words import COLOURS, DIRECTIONS, GROUND_PATTERNS, GROUNDS, SHAPES

QUESTIONS = {
    frozenset(("left", "right")): "left or right?",
    frozenset(("up", "down")): "up or down?",
}
OPEN_QUESTION = "in which direction does the {shape} move?"
FORWARD = ("right", "down")
Combination = tuple[str, str, str, str]


def held_out(combination: Combination) -> bool:
    """Whether this (colour, shape, direction, pattern) is one of the 64 of 1,024 that training can leave out.

    The 64 are spread evenly: each colour and shape occurs 8 times, each direction and pattern 16 times, and every
    pair of a colour and a shape exactly once.
    """
    colour, shape, direction, pattern = combination
    a, b = tuple(COLOURS).index(colour), SHAPES.index(shape)
    c, d = DIRECTIONS.index(direction), GROUND_PATTERNS.index(pattern)
    return (a + b) % 4 == c and (a + 3 * b + b // 4 + a // 4) % 4 == d


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """What clips show."""

    num_frames: int = 4
    """Frames per clip (F), at least 2."""
    size: int = 32
    """Side of a frame in pixels."""
    directions: tuple[str, ...] = ("left", "right")
    """Directions that occur, equally often."""
    shapes: tuple[str, ...] = ("square",)
    """Shape words of the moving thing."""
    colours: tuple[str, ...] = tuple(COLOURS)
    """Colour words of the moving thing."""
    grounds: tuple[str, ...] = ("white", "grey", "black")
    """Colour words of backgrounds."""
    patterns: tuple[str, ...] = ("plain",)
    """Pattern words of backgrounds."""
    combinations: Pairs = "all"
    """Colour, shape, direction and pattern together: all, without the held-out ones, or only those."""

    def __post_init__(self) -> None:
        if self.num_frames < 2:
            raise ValueError(f"a clip needs at least 2 frames to show a direction, got {self.num_frames}")
        if self.combinations not in ("all", "seen", "held_out"):
            raise ValueError(f"combinations must be 'all', 'seen' or 'held_out', got {self.combinations!r}")
        named = {"directions": DIRECTIONS, "shapes": SHAPES, "colours": tuple(COLOURS)}
        for name, allowed in (named | {"grounds": tuple(GROUNDS), "patterns": GROUND_PATTERNS}).items():
            unknown = sorted(set(getattr(self, name)) - set(allowed))
            if unknown or not getattr(self, name):
                raise ValueError(f"{name} must be some of {', '.join(allowed)}; got {', '.join(unknown) or 'nothing'}")
        for direction in self.directions:
            if not self.allowed(direction):
                raise ValueError(f"no {self.combinations} combination is left for direction {direction!r}")

    def allowed(self, direction: str) -> tuple[Combination, ...]:
        """Combinations that may occur in this direction."""
        every = (
            (colour, shape, direction, pattern)
            for colour in self.colours
            for shape in self.shapes
            for pattern in self.patterns
        )
        keep_all, wanted = self.combinations == "all", self.combinations == "held_out"
        return tuple(combination for combination in every if keep_all or held_out(combination) == wanted)


@dataclass(frozen=True, eq=False)
class Clip:
    """A thing that moves.

    Args:
        frames: (F, H, W, 3) uint8 in time order.
        scenes: What each frame shows.
        direction: "left", "right", "up" or "down".
    """

    frames: np.ndarray
    scenes: tuple[Scene, ...]
    direction: str

    @property
    def thing(self) -> Thing:
        """The moving thing as it is in the first frame."""
        return self.scenes[0].things[0]


def sample_clip(seed: Seed, config: ClipConfig | None = None, *, direction: str | None = None) -> Clip:
    """The clip of one seed.

    Args:
        seed: What everything is drawn from.
        config: What may occur.
        direction: Overrules the direction of the seed; the opposite one gives the same frames in reverse as long as
            `combinations` is "all".

    Example:
        >>> left, right = sample_clip(5, direction="left"), sample_clip(5, direction="right")
        >>> bool((left.frames == right.frames[::-1]).all())
        True
    """
    config = config or ClipConfig()
    if direction is None:
        direction = config.directions[balanced(seed, len(config.directions), "direction")]
    rng = generator(seed, "clip")
    combinations = config.allowed(direction)
    colour, shape, _, pattern = combinations[rng.integers(len(combinations))]
    radius = rng.uniform(0.11, 0.16)
    travel = rng.uniform(0.35, 1.0 - 2 * radius)
    start = rng.uniform(radius, 1.0 - radius - travel)
    across = rng.uniform(radius, 1.0 - radius)
    path = np.linspace(start, start + travel, config.num_frames)
    if direction not in FORWARD:
        path = path[::-1]
    thing = Thing(shape=shape, colour=colour, radius=float(radius))
    ground = config.grounds[rng.integers(len(config.grounds))]
    base = Scene(things=(thing,), ground=ground, pattern=pattern, grain_seed=int(rng.integers(2**31)))
    sideways = direction in ("left", "right")
    places = [(place, across) if sideways else (across, place) for place in path]
    scenes = tuple(replace(base, things=(replace(thing, x=float(x), y=float(y)),)) for x, y in places)
    return Clip(np.stack([render(scene, config.size) for scene in scenes]), scenes, direction)


def direction_question(config: ClipConfig, shape: str) -> str:
    """The question about the direction: it names the choices where there are two, else it is open."""
    return QUESTIONS.get(frozenset(config.directions), OPEN_QUESTION.format(shape=shape))


def clip_sample(seed: int, config: ClipConfig | None = None) -> VisualSample:
    """The clip of one seed with the question about its direction; one picture per frame."""
    config = config or ClipConfig()
    clip = sample_clip(seed, config)
    meta = {"seed": seed, "direction": clip.direction, "shape": clip.thing.shape, "colour": clip.thing.colour}
    return VisualSample(list(clip.frames), direction_question(config, clip.thing.shape), clip.direction, meta=meta)
