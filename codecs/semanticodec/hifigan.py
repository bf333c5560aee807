"""HiFi-GAN generator: from a log-mel spectrogram to a waveform.

Dims: B batch, F mel bins, T mel frames, S samples.
Source: Kong et al., arXiv:2010.05646, generator of section 2.2; sizes of AudioLDM 2 (arXiv:2308.05734).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm.codecs.semanticodec.config import VocoderConfig

SLOPE = 0.1
LAST_SLOPE = 0.01  # the published generator falls back to the library's default before its last layer
INIT_STD = 0.01


class DilatedBlock(nn.Module):
    """Residual pairs of convolutions with growing dilation."""

    def __init__(self, width: int, kernel: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.dilated = nn.ModuleList(
            nn.Conv1d(width, width, kernel, dilation=step, padding=step * (kernel - 1) // 2) for step in dilations
        )
        self.plain = nn.ModuleList(nn.Conv1d(width, width, kernel, padding=(kernel - 1) // 2) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S) -> (B, C, S)."""
        for dilated, plain in zip(self.dilated, self.plain, strict=True):
            x = x + plain(F.leaky_relu(dilated(F.leaky_relu(x, SLOPE)), SLOPE))
        return x


class HifiGan(nn.Module):
    """Waveform of a log-mel spectrogram.

    Args:
        config: Sizes.
    """

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width // 2**level for level in range(len(config.rates) + 1)]
        self.conv_in = nn.Conv1d(config.mel_bins, config.width, 7, padding=3)
        self.upsamples = nn.ModuleList(
            nn.ConvTranspose1d(widths[level], widths[level + 1], kernel, stride=rate, padding=(kernel - rate) // 2)
            for level, (rate, kernel) in enumerate(zip(config.rates, config.kernels, strict=True))
        )
        self.blocks = nn.ModuleList(
            nn.ModuleList(DilatedBlock(width, kernel, config.dilations) for kernel in config.res_kernels)
            for width in widths[1:]
        )
        self.conv_out = nn.Conv1d(widths[-1], 1, 7, padding=3)

    def reset_parameters(self) -> None:
        """Small normal weights in all layers but the first, as published; call it before training from scratch."""
        for module in [*self.upsamples, *self.blocks.modules(), self.conv_out]:
            if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
                nn.init.normal_(module.weight, std=INIT_STD)

    def samples_of(self, frames: int) -> int:
        """Length of the output for T frames: more than 160 T, because rate 5 with kernel 16 pads one sample too few."""
        for rate, kernel in zip(self.config.rates, self.config.kernels, strict=True):
            frames = (frames - 1) * rate - 2 * ((kernel - rate) // 2) + kernel
        return frames

    def forward(self, mel: Tensor) -> Tensor:
        """Waveform (B, 1, samples_of(T)) in [-1, 1] of a log-mel spectrogram (B, F, T)."""
        x = self.conv_in(mel)
        for upsample, blocks in zip(self.upsamples, self.blocks, strict=True):
            x = upsample(F.leaky_relu(x, SLOPE))
            x = sum(block(x) for block in blocks) / len(blocks)  # type: ignore
        return torch.tanh(self.conv_out(F.leaky_relu(x, LAST_SLOPE)))
