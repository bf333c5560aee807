"""Small layers that the mel autoencoder and the diffusion network have in common."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """Group norm with statistics in float32; the caller's dtype comes back."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (B, C, ...)."""
        found = F.group_norm(x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps)
        return found.to(x.dtype)


class Upsample(nn.Module):
    """Twice the size by repetition, then a 3x3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, F) -> (B, C, 2T, 2F)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]


def zeroed(module: nn.Module) -> nn.Module:
    """`module` with all parameters at zero: its branch adds nothing before training."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def position_code(tokens: int, width: int) -> Tensor:
    """Sine at even and cosine at odd channels of p 10000^(-2i / width), (N, width) float32; p counts from 0."""
    rates = torch.pow(10000.0, -torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(tokens, dtype=torch.float64)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).float()
