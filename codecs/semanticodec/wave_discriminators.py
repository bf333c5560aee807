"""Discriminators of a vocoder: one looks at periods, one at scales.

Dims: B batch, S samples, P period.
Source: HiFi-GAN (Kong et al., arXiv:2010.05646), sections 2.3 and 2.4. Deviation: all scales use weight norm, where the
paper gives the first scale spectral norm; widths are scaled by one number.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

SLOPE = 0.1
PERIODS = (2, 3, 5, 7, 11)
SCALES = 3
Judgement = tuple[Tensor, list[Tensor]]
"""Scores, and the features of all layers before them."""


class PeriodDiscriminator(nn.Module):
    """Sees every P-th sample as one row of a picture."""

    def __init__(self, period: int, width: int) -> None:
        super().__init__()
        self.period = period
        widths = [1, width, 4 * width, 16 * width, 32 * width, 32 * width]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (5, 1), stride=(3 if index < 4 else 1, 1), padding=(2, 0)))
            for index, (a, b) in enumerate(pairwise(widths))
        )
        self.last = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, wave: Tensor) -> Judgement:
        """Judge (B, 1, S)."""
        padded = F.pad(wave, (0, -wave.shape[-1] % self.period), mode="reflect")
        return _judge(rearrange(padded, "b 1 (s p) -> b 1 s p", p=self.period), self.layers, self.last)


class ScaleDiscriminator(nn.Module):
    """Grouped convolutions over the waveform, at one resolution."""

    WIDTHS = (4, 4, 8, 16, 32, 32, 32)
    KERNELS = (15, 41, 41, 41, 41, 41, 5)
    STRIDES = (1, 2, 2, 4, 4, 1, 1)
    GROUPS = (1, 4, 16, 16, 16, 16, 1)

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [1, *(factor * width for factor in self.WIDTHS)]
        sizes = zip(pairwise(widths), self.KERNELS, self.STRIDES, self.GROUPS, strict=True)
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv1d(a, b, kernel, stride=stride, groups=groups, padding=kernel // 2))
            for (a, b), kernel, stride, groups in sizes
        )
        self.last = weight_norm(nn.Conv1d(widths[-1], 1, 3, padding=1))

    def forward(self, wave: Tensor) -> Judgement:
        """Judge (B, 1, S)."""
        return _judge(wave, self.layers, self.last)


class WaveDiscriminator(nn.Module):
    """All periods and all scales.

    Args:
        width: Channels behind the first layer; the paper's 32.
        periods: Rows of the pictures.
    """

    def __init__(self, width: int = 32, periods: Sequence[int] = PERIODS) -> None:
        super().__init__()
        if width < 4 or width % 4:
            raise ValueError(f"discriminator width must be a multiple of 4, got {width}")
        self.periods = nn.ModuleList(PeriodDiscriminator(period, width) for period in periods)
        self.scales = nn.ModuleList(ScaleDiscriminator(width) for _ in range(SCALES))

    def forward(self, wave: Tensor) -> list[Judgement]:
        """One judgement of (B, 1, S) per period and scale; each scale halves the rate of the one before."""
        found = [judge(wave) for judge in self.periods]
        for index, judge in enumerate(self.scales):
            wave = F.avg_pool1d(wave, 4, 2, padding=2) if index else wave
            found.append(judge(wave))
        return found


def discriminator_loss(real: list[Judgement], fake: list[Judgement]) -> Tensor:
    """Least squares: real scores to 1, fake scores to 0."""
    terms = [(1 - r).square().mean() + f.square().mean() for (r, _), (f, _) in zip(real, fake, strict=True)]
    return torch.stack(terms).sum()


def generator_losses(real: list[Judgement], fake: list[Judgement]) -> tuple[Tensor, Tensor]:
    """(adversarial, feature matching) terms of the generator."""
    adversarial = torch.stack([(1 - scores).square().mean() for scores, _ in fake]).sum()
    matching = [
        (a.detach() - b).abs().mean()
        for (_, own), (_, other) in zip(real, fake, strict=True)
        for a, b in zip(own, other, strict=True)
    ]
    return adversarial, torch.stack(matching).sum()


def _judge(x: Tensor, layers: nn.ModuleList, last: nn.Module) -> Judgement:
    features = []
    for layer in layers:
        x = F.leaky_relu(layer(x), SLOPE)
        features.append(x)
    scores = last(x)
    return scores.flatten(1), [*features, scores]
