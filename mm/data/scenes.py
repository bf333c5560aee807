"""Scenes: a few things on a background, described by words and drawn at any size.

Each thing stands in its own cell of a three by three grid, so things never overlap and their place has a name. The
description is the truth about the picture; captions and questions are written from it.

Dims: H = W picture side in pixels, T things.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mm.data.drawing import around, coverage, paint_ground, paint_shape
from mm.data.marks import paint_mark
from mm.data.split import Seed, generator
from mm.data.words import COLOURS, DIGITS, GROUND_PATTERNS, GROUNDS, PLACES, SHAPES, SIZES, TEXTURES

Pairs = Literal["all", "seen", "held_out"]
RADII = {"small": 0.085, "large": 0.145}
"""Size word -> radius as a fraction of the picture's side; a cell is a third wide."""
GAP = 0.012
"""Free border of a cell: neighbours keep twice this distance, as a fraction of the picture's side."""
MARKED_SHAPES = ("circle", "square", "diamond")
"""Shapes with room for a mark around their centre."""
HELD_OUT_PAIRS = frozenset((shape, tuple(COLOURS)[(3 * index + 1) % 8]) for index, shape in enumerate(SHAPES))
"""Eight of the 64 shape and colour pairs, each shape and each colour once, for tests of new combinations."""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One thing of a scene; positions and radius are fractions of the picture's side."""

    shape: str
    colour: str
    size: str = "large"
    texture: str = "plain"
    x: float = 0.5
    y: float = 0.5
    radius: float = RADII["large"]
    mark: int | None = None
    """Tiny digit on the thing, 0 to 9."""

    @property
    def name(self) -> str:
        """Colour and shape: what questions call it."""
        return f"{self.colour} {self.shape}"

    @property
    def place(self) -> str:
        """One of the nine place names."""
        return PLACES[3 * min(int(self.y * 3), 2) + min(int(self.x * 3), 2)]

    @property
    def digit(self) -> str | None:
        """The word of the mark."""
        return None if self.mark is None else DIGITS[self.mark]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a picture shows."""

    things: tuple[Thing, ...]
    ground: str = "white"
    """Colour word of the background."""
    pattern: str = "plain"
    """Pattern word of the background."""
    grain_seed: int = 0
    """Seed of a grainy background and of the grain under marks."""
    full_size: int = 112
    """Side in pixels at which marks are one pixel fine."""


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """What scenes may contain."""

    min_things: int = 1
    """Fewest things."""
    max_things: int = 4
    """Most things, up to 9."""
    shapes: tuple[str, ...] = SHAPES
    """Shape words to draw from."""
    colours: tuple[str, ...] = tuple(COLOURS)
    """Colour words to draw from."""
    textures: tuple[str, ...] = TEXTURES
    """Texture words of things."""
    sizes: tuple[str, ...] = SIZES
    """Size words of things."""
    grounds: tuple[str, ...] = tuple(GROUNDS)
    """Colour words of backgrounds."""
    patterns: tuple[str, ...] = GROUND_PATTERNS
    """Pattern words of backgrounds."""
    pairs: Pairs = "all"
    """Shape and colour pairs: all, without the held-out ones, or only those."""
    marks: bool = False
    """Put a tiny digit on every thing; things are then large, plain and of a shape with room for it."""
    full_size: int = 112
    """Side in pixels at which marks are one pixel fine, 96 or more."""
    scale: float = 1.0
    """Factor on the radius of things, 0..1: below 1 they leave more of the picture to the background."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_things <= self.max_things <= 9:
            raise ValueError(
                f"1 <= min_things <= max_things <= 9 must hold, got {self.min_things} and {self.max_things}"
            )
        if self.pairs not in ("all", "seen", "held_out"):
            raise ValueError(f"pairs must be 'all', 'seen' or 'held_out', got {self.pairs!r}")
        if self.full_size < 96:
            raise ValueError(f"full_size must be at least 96 pixels for a mark to fit, got {self.full_size}")
        if not 0 < self.scale <= 1:
            raise ValueError(f"scale must lie in 0..1 (0 excluded), got {self.scale}")
        if self.marks and self.scale != 1:
            raise ValueError(f"marks only fit on things of full size, got scale={self.scale}; leave scale at 1")
        for name, allowed in _ALLOWED.items():
            unknown = sorted(set(getattr(self, name)) - set(allowed))
            if unknown or not getattr(self, name):
                raise ValueError(f"{name} must be some of {', '.join(allowed)}; got {', '.join(unknown) or 'nothing'}")
        if len(self.allowed_pairs) < self.max_things:
            raise ValueError(
                f"{len(self.allowed_pairs)} shape and colour pairs are left, too few for {self.max_things} different "
                "things; allow more shapes or colours or lower max_things"
            )

    @property
    def allowed_pairs(self) -> tuple[tuple[str, str], ...]:
        """(shape, colour) pairs that may occur."""
        shapes = [shape for shape in self.shapes if not self.marks or shape in MARKED_SHAPES]
        pairs = ((shape, colour) for shape in shapes for colour in self.colours)
        return tuple(
            pair for pair in pairs if self.pairs == "all" or (pair in HELD_OUT_PAIRS) == (self.pairs == "held_out")
        )


_ALLOWED: dict[str, Sequence[str]] = {
    "shapes": SHAPES,
    "colours": tuple(COLOURS),
    "textures": TEXTURES,
    "sizes": SIZES,
    "grounds": tuple(GROUNDS),
    "patterns": GROUND_PATTERNS,
}


def _pick(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]


def sample_scene(seed: Seed, config: SceneConfig | None = None) -> Scene:
    """The scene of one seed: different shape and colour pairs in different cells.

    Example:
        >>> scene = sample_scene(3)
        >>> scene == sample_scene(3), scene == sample_scene(4)
        (True, False)
    """
    config = config or SceneConfig()
    rng = generator(seed, "scene")
    count = int(rng.integers(config.min_things, config.max_things + 1))
    cells = rng.permutation(9)[:count]
    pairs = config.allowed_pairs
    chosen = rng.permutation(len(pairs))[:count]
    things = tuple(_thing(rng, config, pairs[pair], int(cell)) for pair, cell in zip(chosen, cells, strict=True))
    return Scene(
        things=things,
        ground=_pick(rng, config.grounds),
        pattern=_pick(rng, config.patterns),
        grain_seed=int(rng.integers(2**31)),
        full_size=config.full_size,
    )


def _thing(rng: np.random.Generator, config: SceneConfig, pair: tuple[str, str], cell: int) -> Thing:
    """A thing somewhere inside its cell of the three by three grid."""
    size = "large" if config.marks else _pick(rng, config.sizes)
    texture = "plain" if config.marks else _pick(rng, config.textures)
    radius = RADII[size] * rng.uniform(0.92, 1.0) * config.scale
    row, column = divmod(cell, 3)
    x, y = (np.array([column, row]) + 0.5) / 3 + rng.uniform(-1, 1, 2) * (1 / 6 - radius - GAP)
    mark = int(rng.integers(10)) if config.marks else None
    return Thing(
        shape=pair[0],
        colour=pair[1],
        size=size,
        texture=texture,
        x=float(x),
        y=float(y),
        radius=float(radius),
        mark=mark,
    )


def render(scene: Scene, size: int) -> np.ndarray:
    """Draw the scene.

    Args:
        scene: What to draw.
        size: Side of the picture in pixels, at least 8.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: `size` below 8.
    """
    if size < 8:
        raise ValueError(f"a scene needs at least 8 pixels per side, got {size}")
    canvas = paint_ground(size, GROUNDS[scene.ground], scene.pattern, scene.grain_seed)
    for index, thing in enumerate(scene.things):
        colour, centre = COLOURS[thing.colour], {"x": thing.x, "y": thing.y}
        paint_shape(canvas, thing.shape, colour, **centre, radius=thing.radius, texture=thing.texture)
        if thing.mark is not None:
            rng = np.random.default_rng([scene.grain_seed, index])
            paint_mark(canvas, thing.mark, colour, **centre, full_size=scene.full_size, rng=rng)
    return np.rint(np.clip(canvas, 0.0, 255.0)).astype(np.uint8)


def thing_masks(scene: Scene, size: int) -> np.ndarray:
    """Where each thing is: the part of every pixel that it covers, (T, H, W) float32 in 0..1."""
    masks = np.zeros((len(scene.things), size, size), np.float32)
    for mask, thing in zip(masks, scene.things, strict=True):
        rows, columns, u, v = around(thing.x, thing.y, thing.radius, size)
        mask[rows, columns] = coverage(thing.shape, u, v, thing.radius * size)
    return masks
