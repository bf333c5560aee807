"""Organ segmentation: a SwinUNETR around the vision encoder, with what it needs to know about a scan.

Dims: B scans, C classes, X Y Z voxels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mm.checkpoint import Pretrained
from mm.extras import require
from mm.medical.phantoms import LABELS
from mm.medical.velvet.config import VisionConfig
from mm.medical.velvet.convert import LoadReport, load_into_swin_unetr
from mm.medical.velvet.vision import VisionEncoder
from mm.medical.volumes.windows import WINDOWS
from mm.medical.volumes.working_grid import WorkingGrid

MULTIPLE = 32
"""Voxels per edge must be a multiple of this; `Segmenter` pads."""
PURPOSE = "Segmentation"


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig:
    """A segmentation network and the scans that it expects."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    """Sizes of the encoder; `embed_dim` must be a multiple of 12."""
    labels: tuple[str, ...] = LABELS
    """Names of the classes (C), background first."""
    spacing_mm: tuple[float, float, float] = (1.5, 1.5, 2.0)
    """Spacing of the scans it was trained on."""
    window: str = "abdomen"
    """Intensity window that becomes 0 to 1, see `mm.medical.volumes.windows`."""
    patch: int = 96
    """Edge of the cubes it was trained on and that slide over a larger scan, voxels."""
    crop_body: bool = True
    """Whether the air around the body is cut away first."""
    bottleneck: bool = True
    """Two convolutions on the last encoder output, as MONAI has them. They hold more than half of a small network;
    False leaves them out."""

    def __post_init__(self) -> None:
        if self.vision.embed_dim % 12:
            raise ValueError(f"a SwinUNETR needs vision.embed_dim in multiples of 12, got {self.vision.embed_dim}")
        if len(self.labels) < 2 or len(self.labels) > 256:
            raise ValueError(f"labels must name 2 to 256 classes, background first, got {len(self.labels)}")
        if self.window not in WINDOWS:
            raise ValueError(f"unknown window {self.window!r}; there are {', '.join(WINDOWS)}")
        if self.patch % MULTIPLE or self.patch < MULTIPLE:
            raise ValueError(f"patch must be a multiple of {MULTIPLE}, got {self.patch}")


class Segmenter(Pretrained, nn.Module):
    """Scans -> class scores per voxel; `segmenter.network` is a MONAI SwinUNETR with its own keys.

    Args:
        config: Sizes, classes, and the working grid.

    Raises:
        ImportError: MONAI is missing.

    Example:
        >>> import mm, torch
        >>> segmenter = mm.create_model("velvet_tiny_segmenter")
        >>> segmenter(torch.zeros(1, 1, 40, 32, 32)).shape, segmenter.labels[1]
        (torch.Size([1, 8, 40, 32, 32]), 'lungs')

    Source: SwinUNETR (Hatamizadeh et al. 2022, arXiv:2201.01266), as VELVET-Med's code transfers its encoder: nothing
        is frozen, the decoder starts anew.
    """

    config_class = SegmenterConfig
    config: SegmenterConfig

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.config = config
        self.network = swin_unetr(config)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, background first."""
        return self.config.labels

    @property
    def grid(self) -> WorkingGrid:
        """How a scan from `load_volume` becomes an input: `segmenter.grid.prepare(scan).image[None]`."""
        config = self.config
        return WorkingGrid(
            spacing=config.spacing_mm, window=config.window, crop_body=config.crop_body, smallest=config.patch
        )

    def forward(self, volume: Tensor) -> Tensor:
        """Scores of every class.

        Args:
            volume: (B, 1, X, Y, Z) in 0 .. 1 at `config.spacing_mm`; any size, padded inside with 0.

        Returns:
            (B, C, X, Y, Z); the class is their argmax.
        """
        edges = volume.shape[2:]
        lack = [-edge % MULTIPLE for edge in edges]
        volume = volume.to(next(self.parameters()).dtype)
        padded = F.pad(volume, [part for short in reversed(lack) for part in (0, short)])
        scores: Tensor = self.network(padded)
        return scores[:, :, : edges[0], : edges[1], : edges[2]]

    def take_encoder(self, encoder: VisionEncoder) -> LoadReport:
        """Start from a pre-trained encoder of the same sizes; the decoder keeps its random weights."""
        return load_into_swin_unetr(self.network, encoder)

    def preprocessing(self) -> dict[str, Any]:
        config = self.config
        return {
            "spacing": list(config.spacing_mm),
            "window": config.window,
            "edge": config.patch,
            "crop_body": config.crop_body,
            "labels": list(config.labels),
            "axes": "RAS",
            "intensity": "window to 0..1, clipped",
        }


def swin_unetr(config: SegmenterConfig) -> nn.Module:
    """MONAI's SwinUNETR around an encoder of these sizes."""
    nets = require("monai.networks.nets.swin_unetr", extra="medical", purpose=PURPOSE)
    vision = config.vision
    network: nn.Module = nets.SwinUNETR(
        in_channels=vision.in_channels,
        out_channels=len(config.labels),
        patch_size=vision.patch_size,
        depths=vision.depths,
        num_heads=vision.num_heads,
        window_size=vision.window_size,
        feature_size=vision.embed_dim,
    )
    if not config.bottleneck:
        network.encoder10 = nn.Identity()
    return network
