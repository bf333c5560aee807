"""Tile layout: four tiles of one picture, one of which holds a thing; only the tile's position tells which.

The tiles are drawn first and their place is chosen last, so the set of four tiles is the same for every answer: a
model that sees tiles without their position is at chance, 1/4.

Dims: P tile side in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mm.data.sample import VisualSample
from mm.data.scenes import SceneConfig, render, sample_scene
from mm.data.split import balanced, generator
from mm.data.words import COLOURS, SHAPES

QUARTERS = ("top left", "top right", "bottom left", "bottom right")
"""Tiles in reading order: two by two."""
QUESTION = "which quarter contains the {shape}?"


@dataclass(frozen=True, kw_only=True)
class TileConfig:
    """What tiles show."""

    size: int = 32
    """Side of one tile in pixels (P)."""
    shapes: tuple[str, ...] = SHAPES
    """Shape words of the thing."""
    colours: tuple[str, ...] = tuple(COLOURS)
    """Colour words of the thing."""


def tile_sample(seed: int, config: TileConfig | None = None, *, quarter: int | None = None) -> VisualSample:
    """Four tiles (P, P, 3) in reading order and the question which of them holds the thing.

    Args:
        seed: What everything is drawn from.
        config: What may occur.
        quarter: Overrules the quarter of the seed, 0 to 3 in reading order; the set of tiles stays the same.
    """
    config = config or TileConfig()
    if quarter is None:
        quarter = balanced(seed, len(QUARTERS), "quarter")
    content = SceneConfig(max_things=1, shapes=config.shapes, colours=config.colours, sizes=("large",))
    scene = sample_scene(generator(seed, "tiles"), content)
    full = render(scene, config.size)
    empty = render(replace(scene, things=()), config.size)
    images = [full if index == quarter else np.copy(empty) for index in range(len(QUARTERS))]
    question = QUESTION.format(shape=scene.things[0].shape)
    return VisualSample(images, question, QUARTERS[quarter], meta={"seed": seed, "quarter": quarter})
