"""Scenes with the features of a teacher that sees only what matters: colour and shape of the thing on every patch.

The features are a fixed random projection of the two classes, so textures, ground patterns and grain cannot reach them:
codes that rebuild them are semantic, and a tokenizer of pixels is told apart at once.
Dims: B pictures, S side in pixels, N patches, C target width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mm.data import SceneConfig, render, sample_scene
from mm.data.dense import TARGETS, scene_labels
from mm.data.seeded_module import SeededBatches

PROJECTION_SEED = 20_231_128
"""Draws the oracle's projection; part of what the tiny codes mean, so it never changes."""


@dataclass(frozen=True, kw_only=True)
class OracleSceneConfig:
    """Procedural scenes and their oracle features."""

    scenes: SceneConfig = field(default_factory=SceneConfig)
    """What scenes contain."""
    image_size: int = 64
    """Side of a picture, pixels (S)."""
    patch_size: int = 8
    """Side of a patch, pixels; must divide `image_size`."""
    width: int = 32
    """Channels of the features (C)."""
    batch_size: int = 32
    """Pictures per batch and process (B)."""
    held_out_batches: int = 8
    """Batches of the validation and test sets."""
    workers: int = 0
    """Loading processes."""

    def __post_init__(self) -> None:
        if self.patch_size < 1 or self.image_size % self.patch_size:
            raise ValueError(f"patch_size must divide image_size, got {self.patch_size} and {self.image_size}")


class OracleScenes(SeededBatches):
    """`pictures` (B, 3, S, S) float in 0..1, `targets` (B, N, C) float, `colour` and `shape` (B, N) int64."""

    def __init__(self, config: OracleSceneConfig | None = None) -> None:
        self.config = config or OracleSceneConfig()
        super().__init__(
            partial(oracle_rows, self.config),
            batch_size=self.config.batch_size,
            held_out_batches=self.config.held_out_batches,
            workers=self.config.workers,
        )


def oracle_rows(config: OracleSceneConfig, seeds: Sequence[int]) -> dict[str, Tensor]:
    """The scenes of some seeds as one batch."""
    scenes = [sample_scene(seed, config.scenes) for seed in seeds]
    pictures = torch.from_numpy(np.stack([render(scene, config.image_size) for scene in scenes]))
    planes = [scene_labels(scene, config.image_size // config.patch_size) for scene in scenes]
    labels = {
        name: rearrange(torch.from_numpy(np.stack([plane[name] for plane in planes])), "b i j -> b (i j)")
        for name in ("colour", "shape")
    }
    targets = oracle_features(labels["colour"], labels["shape"], config.width)
    return {"pictures": rearrange(pictures, "b h w c -> b c h w").float() / 255, "targets": targets, **labels}


def oracle_features(colour: Tensor, shape: Tensor, width: int) -> Tensor:
    """Unit features (..., C) of class numbers (...); `mm.data.dense.TARGETS` names the classes."""
    generator = torch.Generator().manual_seed(PROJECTION_SEED)
    tables = [torch.randn(len(TARGETS[name]), width, generator=generator) for name in ("colour", "shape")]
    return F.normalize(tables[0][colour] + tables[1][shape], dim=-1)
