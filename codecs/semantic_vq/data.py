"""Scenes with the features of a teacher that sees only what matters: colour and shape of the thing on every patch.

The features are a fixed random projection of the two classes, so textures, ground patterns and grain cannot reach them:
codes that rebuild them are semantic, and a tokenizer of pixels is told apart at once.
Dims: B pictures, S side in pixels, N patches, C target width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mm.data import Scene, SceneConfig, render, sample_scene
from mm.data.dense import NOTHING, TARGETS, scene_labels
from mm.data.seeded_module import SeededBatches
from mm.data.split import generator, split_of

PROJECTION_SEED = 20_231_128
"""Draws the oracle's projection; part of what the tiny codes mean, so it never changes."""
LOOSE_RADII = (0.1, 0.21)
"""Smallest and largest radius of a loose scene, as fractions of the side."""
_STRIDE = 7919
"""A prime: steps through the kept scenes in mixed order."""


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
    num_scenes: int = 0
    """Different training scenes, kept in memory after their first use; 0 never repeats one."""
    loose: bool = False
    """Things stand anywhere and have any size, instead of in the cells of a grid."""
    thing_share: float = 0.5
    """Share of a batch's weight that lies on patches with a thing; 0 weighs all patches alike."""
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
    """`pictures` (B, 3, S, S) uint8, `targets` (B, N, C) float, `weights` (B, N) float, `colour` and `shape` (B, N)."""

    def __init__(self, config: OracleSceneConfig | None = None) -> None:
        self.config = config or OracleSceneConfig()
        super().__init__(
            OracleRows(self.config),
            batch_size=self.config.batch_size,
            held_out_batches=self.config.held_out_batches,
            workers=self.config.workers,
        )


def loose_scene(seed: int, config: SceneConfig) -> Scene:
    """Things anywhere and of any size, later ones before earlier ones; words are drawn as in `sample_scene`."""
    scene = sample_scene(seed, config)
    rng = generator(seed, "loose scene")
    things = []
    for thing in scene.things:
        radius = float(rng.uniform(*LOOSE_RADII))
        x, y = rng.uniform(radius, 1 - radius, 2)
        things.append(replace(thing, x=float(x), y=float(y), radius=radius))
    return replace(scene, things=tuple(things))


class OracleRows:
    """Seeds to batches; with `num_scenes`, training seeds wrap around and drawn scenes are kept."""

    def __init__(self, config: OracleSceneConfig) -> None:
        self.config = config
        self._drawn: dict[int, dict[str, Tensor]] = {}

    def __call__(self, seeds: Sequence[int]) -> dict[str, Tensor]:
        """The scenes of some seeds as one batch."""
        kept = bool(self.config.num_scenes)
        rows = [self._row(seed) if kept and split_of(seed) == "train" else self._draw(seed) for seed in seeds]
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        batch["targets"] = oracle_features(batch["colour"], batch["shape"], self.config.width)
        return batch | {"weights": thing_weights(batch["colour"], self.config.thing_share)}

    def _row(self, seed: int) -> dict[str, Tensor]:
        epoch, place = divmod(seed, self.config.num_scenes)
        chosen = (place * _STRIDE + epoch) % self.config.num_scenes  # another order in each epoch
        if chosen not in self._drawn:
            self._drawn[chosen] = self._draw(chosen)
        return self._drawn[chosen]

    def _draw(self, seed: int) -> dict[str, Tensor]:
        draw = loose_scene if self.config.loose else sample_scene
        scene, size = draw(seed, self.config.scenes), self.config.image_size
        planes = scene_labels(scene, size // self.config.patch_size)
        labels = {name: torch.from_numpy(planes[name].reshape(-1)) for name in ("colour", "shape")}
        return {"pictures": rearrange(torch.from_numpy(render(scene, size)), "h w c -> c h w"), **labels}


def thing_weights(colour: Tensor, share: float) -> Tensor:
    """Weights of patches with colour classes (B, N): things together weigh `share`; mean 1, (B, N) float32."""
    thing = colour != TARGETS["colour"].index(NOTHING)
    found = thing.float().mean().clamp(1e-3, 1 - 1e-3)
    return (
        torch.where(thing, share / found, (1 - share) / (1 - found))
        if share
        else torch.ones_like(found).expand_as(thing)
    )


def oracle_features(colour: Tensor, shape: Tensor, width: int) -> Tensor:
    """Unit features (..., C) of class numbers (...); `mm.data.dense.TARGETS` names the classes."""
    generator = torch.Generator().manual_seed(PROJECTION_SEED)
    tables = [torch.randn(len(TARGETS[name]), width, generator=generator) for name in ("colour", "shape")]
    return F.normalize(tables[0][colour] + tables[1][shape], dim=-1)
