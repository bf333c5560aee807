"""Teachers: frozen models whose patch features the codes must be able to rebuild.

Every teacher takes the same frames as the tokenizer, RGB in 0..1, and applies its own size and normalisation.
Dims: B pictures, S side in pixels, N patches, C feature width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm.vision import ImagePreprocessing, TowerConfig, VisionTower, build_tower


class Teacher(nn.Module):
    """Base: frames (B, 3, S, S) in 0..1 -> patch features in raster order (B, N, C); frozen, always evaluating."""

    width: int
    """Channels of the features (C)."""

    def features(self, frames: Tensor) -> Tensor:
        """What a subclass writes."""
        raise NotImplementedError(f"{type(self).__name__} must implement features(frames)")

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, N, C), no gradient.

        Raises:
            ValueError: the features are not (B, N, `width`).
        """
        found = self.features(frames)
        if found.ndim != 3 or found.shape[0] != len(frames) or found.shape[2] != self.width:
            raise ValueError(f"teacher must give features ({len(frames)}, N, {self.width}), got {tuple(found.shape)}")
        return found

    def train(self, mode: bool = True) -> Teacher:
        """Teachers stay in evaluation mode."""
        return super().train(False)


class TowerTeacher(Teacher):
    """A vision tower of timm, open_clip or transformers.

    Args:
        tower: Read at its last layer with its final norm, as teachers are (`TowerConfig(layer=-1, final_norm=True)`).
        projection: Matrix (tower width, C) on every patch token, for instance CLIP's projection into its joint space.
    """

    mean: Tensor
    std: Tensor
    projection: Tensor | None

    def __init__(self, tower: VisionTower, projection: Tensor | None = None) -> None:
        super().__init__()
        self.tower = tower.freeze()
        self.register_buffer("projection", None if projection is None else projection.detach().clone())
        self.width = tower.width if projection is None else projection.shape[1]
        for name in ("mean", "std"):
            values = torch.tensor(getattr(tower.preprocessing, name))[:, None, None]
            self.register_buffer(name, values, persistent=False)
        self.eval()

    def features(self, frames: Tensor) -> Tensor:
        """Resize to the tower's side if it differs, normalise its way, encode, project."""
        if tuple(frames.shape[-2:]) != self.tower.image_size:
            frames = F.interpolate(frames, self.tower.image_size, mode="bicubic", antialias=True).clamp(0, 1)
        tokens = self.tower((frames - self.mean) / self.std).tokens
        return tokens if self.projection is None else tokens @ self.projection.to(tokens.dtype)


class CallableTeacher(Teacher):
    """Any function of frames (B, 3, S, S) in 0..1 that gives (B, N, C); it normalises by itself.

    Args:
        function: Called without gradient.
        width: Its channels (C).
    """

    def __init__(self, function: Callable[[Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.function, self.width = function, width
        if isinstance(function, nn.Module):
            function.requires_grad_(False)
        self.eval()

    def features(self, frames: Tensor) -> Tensor:
        """Call the function."""
        return self.function(frames)


def as_teacher(source: Teacher | VisionTower | Callable[[Tensor], Tensor], width: int | None = None) -> Teacher:
    """A teacher, a vision tower or a function -> a teacher.

    Args:
        source: See the classes above.
        width: Channels of a function's features; towers know theirs.

    Raises:
        ValueError: a function without its width.
    """
    if isinstance(source, Teacher):
        return source
    if isinstance(source, VisionTower):
        return TowerTeacher(source)
    if width is None:
        raise ValueError("a function as teacher needs width, the channels of its features")
    return CallableTeacher(source, width)


def tower_teacher(config: TowerConfig, weights: str | None) -> TowerTeacher:
    """Build a tower and teach with its last layer; an open_clip tower adds its projection into the joint space.

    Raises:
        ValueError: a config that reads another layer or skips the final norm.
    """
    if config.layer != -1 or not config.final_norm:
        raise ValueError(
            f"a teacher is read at its last layer behind its norm: set layer=-1 and final_norm=true, got "
            f"layer={config.layer}, final_norm={config.final_norm}"
        )
    tower = build_tower(config, weights=weights)
    projection = getattr(tower.module, "proj", None) if config.library == "open_clip" else None
    return TowerTeacher(tower, projection)


def clip_teacher(weights: str | None = "openai", image_size: int = 224) -> TowerTeacher:
    """CLIP ViT-B/16 with QuickGELU: final norm and projection on every patch token, 512 channels.

    Args:
        weights: A tag of open_clip (downloaded), a local file, or None for random weights.
        image_size: Side of the frames, pixels.
    """
    config = TowerConfig(
        library="open_clip",
        name="ViT-B-16-quickgelu",
        layer=-1,
        final_norm=True,
        preprocessing=ImagePreprocessing(size=image_size),
    )
    return tower_teacher(config, weights)
