"""Wide scenes: small things in a large picture, with a label per patch and a summary of the whole picture.

Most patches show background, so there is something to leave out. A patch belongs to a thing when its centre lies inside
the circle around the thing; the summary says what stands in each of the nine places.
Dims: B pictures, S patches per side of 8 pixels, H = W = 8 * S.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mm.data.dense import NOTHING, TARGETS
from mm.data.scenes import Scene, SceneConfig, render, sample_scene
from mm.data.seeded_module import SeededBatches
from mm.data.words import PLACES

PATCH = 8
SIDE = 16
"""Patches per side (S): 256 of them."""
WIDE = SceneConfig(scale=0.7, textures=("plain",), shapes=("square", "triangle", "cross", "ring"))
"""Things cover about one patch in twenty."""
PATCH_TARGETS = ("colour", "shape", "place")
PLACE_TARGETS = ("colour", "shape")


def patch_owners(scene: Scene, side: int = SIDE) -> np.ndarray:
    """Number of the thing that each patch belongs to, -1 for background, (S, S) int64."""
    centres = (np.arange(side) + 0.5) / side
    owners = np.full((side, side), -1)
    for number, thing in enumerate(scene.things):
        owners[(centres[:, None] - thing.y) ** 2 + (centres - thing.x) ** 2 <= thing.radius**2] = number
    return owners


def patch_labels(scene: Scene, side: int = SIDE) -> dict[str, np.ndarray]:
    """Colour, shape and place of the thing at each patch, (S, S) int64 each, classes of `mm.data.dense.TARGETS`."""
    owners = patch_owners(scene, side)
    labels = {}
    for name in PATCH_TARGETS:
        words = TARGETS[name]
        classes = [words.index(getattr(thing, name)) for thing in scene.things] + [words.index(NOTHING)]
        labels[name] = np.array(classes)[owners]  # owner -1 is the last entry: nothing
    return labels


def place_labels(scene: Scene) -> dict[str, np.ndarray]:
    """Colour and shape of the thing in each of the nine places, (9,) int64 each, classes as for patches."""
    labels = {}
    for name in PLACE_TARGETS:
        words = TARGETS[name]
        labels[name] = np.full(len(PLACES), words.index(NOTHING))
        for thing in scene.things:
            labels[name][PLACES.index(thing.place)] = words.index(getattr(thing, name))
    return labels


@dataclass(frozen=True, kw_only=True)
class ScenePatchConfig:
    """Wide scenes with labels."""

    scenes: SceneConfig = WIDE
    """What scenes contain."""
    side: int = SIDE
    """Patches per side (S) of 8 pixels each."""
    batch_size: int = 32
    """Pictures per batch and process (B)."""
    held_out_batches: int = 8
    """Batches of the validation and test sets."""
    workers: int = 0
    """Loading processes."""


class ScenePatchData(SeededBatches):
    """Pictures (B, 3, H, W) float in 0..1, `patch_<target>` (B, S * S) and `place_<target>` (B, 9) int64."""

    def __init__(self, config: ScenePatchConfig | None = None) -> None:
        self.config = config or ScenePatchConfig()
        super().__init__(
            partial(scene_rows, self.config),
            batch_size=self.config.batch_size,
            held_out_batches=self.config.held_out_batches,
            workers=self.config.workers,
        )


def scene_rows(config: ScenePatchConfig, seeds: Sequence[int]) -> dict[str, Tensor]:
    """The scenes of consecutive seeds as one batch."""
    scenes = [sample_scene(seed, config.scenes) for seed in seeds]
    pictures = np.stack([render(scene, PATCH * config.side) for scene in scenes])
    patches = [patch_labels(scene, config.side) for scene in scenes]
    places = [place_labels(scene) for scene in scenes]
    return {
        "pictures": torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255,
        **{f"patch_{name}": _stacked(patches, name) for name in PATCH_TARGETS},
        **{f"place_{name}": _stacked(places, name) for name in PLACE_TARGETS},
    }


def _stacked(labels: Sequence[dict[str, np.ndarray]], name: str) -> Tensor:
    return torch.from_numpy(np.stack([label[name].ravel() for label in labels]))
