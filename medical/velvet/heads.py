"""Heads of VELVET-Med: level projections, masked words, match, and the self-supervised heads of the vision encoder.

Dims: B samples, N tokens, D text width, C vision channels, E contrastive width, V visual tokens.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from mm.medical.velvet.config import TextConfig, VelvetConfig

TEMPERATURE_RANGE = (0.01, 1.0)
"""Bounds of the logarithmic form."""
TURNS = 4
"""Quarter turns that the rotation head tells apart."""
UPSAMPLINGS = 5
"""Doublings from the last output back to the voxels."""


class LevelHead(nn.Module):
    """Two linear maps into the shared space of one level."""

    def __init__(self, vision_width: int, text_width: int, width: int) -> None:
        super().__init__()
        self.vision = nn.Linear(vision_width, width)
        self.text = nn.Linear(text_width, width)


class Temperature(nn.Module):
    """The learned temperature of the report loss; it divides.

    Raw: a plain scalar that nothing keeps positive, as published. Log: its logarithm, clamped.
    """

    def __init__(self, form: Literal["raw", "log"], initial: float) -> None:
        super().__init__()
        self.form = form
        self.value = nn.Parameter(torch.tensor(initial if form == "raw" else math.log(initial)))

    def forward(self) -> Tensor:
        return self.value if self.form == "raw" else self.value.exp().clamp(*TEMPERATURE_RANGE)


class VisualAdapter(nn.Module):
    """Last vision output -> visual tokens of the text width: a linear layer and LayerNorm, no position embedding."""

    def __init__(self, vision_width: int, text_width: int) -> None:
        super().__init__()
        self.project = nn.Linear(vision_width, text_width)
        self.norm = nn.LayerNorm(text_width)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w, d) -> (B, V, D)."""
        return self.norm(self.project(rearrange(features, "b c h w d -> b (h w d) c")))  # type: ignore[no-any-return]


class MaskedWordHead(nn.Module):
    """States -> vocabulary logits; its output layer is not tied to the word embeddings."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.output = nn.Linear(config.width, config.vocab_size)

    def forward(self, states: Tensor) -> Tensor:
        return self.output(self.norm(F.gelu(self.dense(states))))  # type: ignore[no-any-return]


class VisionHeads(nn.Module):
    """View contrast, rotation and reconstruction from the last output (B, C, h, w, d)."""

    def __init__(self, config: VelvetConfig) -> None:
        super().__init__()
        width = config.vision.widths[4]
        self.contrast = nn.Linear(width, config.contrastive_width)
        self.rotation = nn.Linear(width, TURNS)
        patch = config.vision.patch_size
        if patch != 2:
            raise ValueError(f"the reconstruction head doubles five times and needs vision.patch_size=2, got {patch}")
        decoder = DeconvDecoder if config.decoder == "deconv" else InterpolatingDecoder
        self.reconstruction = decoder(width, config.vision.in_channels)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embedding (B, E), rotation logits (B, 4), reconstruction (B, channels, 32 h, 32 w, 32 d)."""
        pooled = reduce(features, "b c h w d -> b c", "mean")
        return self.contrast(pooled), self.rotation(pooled), self.reconstruction(features)


class DeconvDecoder(nn.Module):
    """Transposed convolutions with kernel and stride 2 that halve the channels, nothing between them."""

    def __init__(self, width: int, channels: int, steps: int = UPSAMPLINGS) -> None:
        super().__init__()
        widths = [width // 2**step for step in range(steps)]
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(wide, narrow, kernel_size=2, stride=2) for wide, narrow in pairwise(widths)
        )
        self.out = nn.ConvTranspose3d(widths[-1], channels, kernel_size=2, stride=2)

    def forward(self, features: Tensor) -> Tensor:
        for layer in self.up:
            features = layer(features)
        return self.out(features)  # type: ignore[no-any-return]


class InterpolatingDecoder(nn.Module):
    """Convolution, instance norm, LeakyReLU and trilinear doubling per step, then a 1 x 1 convolution."""

    def __init__(self, width: int, channels: int, steps: int = UPSAMPLINGS) -> None:
        super().__init__()
        widths = [max(1, width // 2**step) for step in range(steps + 1)]
        self.up = nn.ModuleList(nn.Conv3d(wide, narrow, kernel_size=3, padding=1) for wide, narrow in pairwise(widths))
        self.out = nn.Conv3d(widths[-1], channels, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        for layer in self.up:
            features = F.leaky_relu(F.instance_norm(layer(features)))
            features = F.interpolate(features, scale_factor=2, mode="trilinear", align_corners=False)
        return self.out(features)  # type: ignore[no-any-return]
