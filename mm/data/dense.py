"""Pictures with a label for every patch, to train a small vision tower before any language is involved.

Half of the pictures are boards (which digit does a patch show), half are scenes (which thing covers it, and in which of
the nine places that thing stands). Where a patch lies is a label too, so that features keep it.

Dims: B pictures, S patches per side, H = W = 8 * S.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mm.data.boards import BoardConfig, boards_batch
from mm.data.scenes import Scene, SceneConfig, render, sample_scene
from mm.data.words import COLOURS, DIGITS, PLACES, SHAPES

NOTHING = "nothing"
TARGETS: dict[str, tuple[str, ...]] = {
    "digit": DIGITS,
    "colour": (*COLOURS, NOTHING),
    "shape": (*SHAPES, NOTHING),
    "place": (*PLACES, NOTHING),
    "row": tuple(map(str, range(1, 9))),
    "col": tuple(map(str, range(1, 9))),
}
"""What is predicted per patch -> its classes."""
UNKNOWN = -100
"""Label of a patch that a target says nothing about (the digit of a scene, say)."""


def dense_batch(
    seeds: Sequence[int], *, scenes: SceneConfig | None = None, side: int = 8
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Pictures of the seeds, even ones as boards and odd ones as scenes.

    Args:
        seeds: One per picture; the split is part of a seed.
        scenes: What scenes contain.
        side: Patches per side (S) of 8 pixels each.

    Returns:
        Pictures (B, H, W, 3) uint8 and for every target labels (B, S, S) int64, -100 where it does not apply.
    """
    size = 8 * side
    pictures = np.empty((len(seeds), size, size, 3), np.uint8)
    labels = {name: np.full((len(seeds), side, side), UNKNOWN) for name in TARGETS}
    labels["row"][:], labels["col"][:] = np.mgrid[:side, :side]
    boards = [index for index, seed in enumerate(seeds) if seed % 2 == 0]
    if boards:
        drawn, digits = boards_batch([seeds[index] for index in boards], BoardConfig(cells=side))
        pictures[boards], labels["digit"][boards] = drawn, digits
    for index in set(range(len(seeds))) - set(boards):
        scene = sample_scene(seeds[index], scenes or SceneConfig())
        pictures[index] = render(scene, size)
        for name, plane in scene_labels(scene, side).items():
            labels[name][index] = plane
    return pictures, labels


def scene_labels(scene: Scene, side: int) -> dict[str, np.ndarray]:
    """Which thing covers the centre of each patch: colour, shape and place of it, (S, S) int64 each."""
    y, x = (np.mgrid[:side, :side] + 0.5) / side
    words = {name: TARGETS[name] for name in ("colour", "shape", "place")}
    labels = {name: np.full((side, side), classes.index(NOTHING)) for name, classes in words.items()}
    for thing in scene.things:
        covered = (x - thing.x) ** 2 + (y - thing.y) ** 2 < thing.radius**2
        for name, classes in words.items():
            labels[name][covered] = classes.index(getattr(thing, name))
    return labels
