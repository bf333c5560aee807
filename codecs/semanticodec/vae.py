"""Mel autoencoder: a log-mel spectrogram as a small Gaussian latent, a quarter as long and a quarter as high.

Dims: B batch, C channels, T mel frames, F mel bins, Z latent channels.
Source: AudioLDM 2 (arXiv:2308.05734), the autoencoder at 16 kHz and 64 bins; SemantiCodec keeps it frozen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mm.codecs.semanticodec.config import VaeConfig
from mm.codecs.semanticodec.decoder_parts import GroupNorm, Upsample
from mm.kernels import attention

LOG_VARIANCE_RANGE = (-30.0, 20.0)


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """Diagonal Gaussian over latents."""

    mean: Tensor
    """(B, Z, T / 4, F / 4)."""
    log_variance: Tensor
    """Same shape, within `LOG_VARIANCE_RANGE`."""

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw, (B, Z, T / 4, F / 4); the generator lives on the device of the mean."""
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + (0.5 * self.log_variance).exp() * noise

    def kl(self) -> Tensor:
        """Divergence from the standard normal, mean over all elements of an item, (B,)."""
        terms = self.mean.square() + self.log_variance.exp() - 1 - self.log_variance
        return 0.5 * terms.flatten(1).mean(dim=1)


class ConvBlock(nn.Module):
    """Two normed convolutions and a skip."""

    def __init__(self, width_in: int, width_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, width_in, eps=1e-6)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm2 = GroupNorm(groups, width_out, eps=1e-6)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.skip = nn.Identity() if width_in == width_out else nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, F) -> (B, C', T, F)."""
        h = self.conv1(F.silu(self.norm1(x)))
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))  # type: ignore[no-any-return]


class MapAttention(nn.Module):
    """Single-head attention over all positions of a feature map."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, width, eps=1e-6)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, F) -> (B, C, T, F)."""
        h = self.norm(x)
        q, k, v = (rearrange(proj(h), "b c t f -> b 1 (t f) c") for proj in (self.q_proj, self.k_proj, self.v_proj))
        found = rearrange(attention(q, k, v), "b 1 (t f) c -> b c t f", t=x.shape[2])
        return x + self.out_proj(found)  # type: ignore[no-any-return]


class Middle(nn.Sequential):
    """Block, attention, block at the narrowest place."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__(ConvBlock(width, width, groups), MapAttention(width, groups), ConvBlock(width, width, groups))


class Downsample(nn.Module):
    """Half the size: one row and column of zeros at the far ends, then a 3x3 convolution with stride 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, F) -> (B, C, T / 2, F / 2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # type: ignore[no-any-return]


class Level(nn.Module):
    """Blocks of one size, then the change to the next."""

    def __init__(self, width_in: int, width_out: int, blocks: int, groups: int, resize: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(ConvBlock(width_in if index == 0 else width_out, width_out, groups) for index in range(blocks))
        )
        self.resize = resize

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, F) -> (B, C', T', F')."""
        x = self.blocks(x)
        return x if self.resize is None else self.resize(x)  # type: ignore[no-any-return]


class MelEncoder(nn.Module):
    """(B, 1, T, F) -> (B, 2 Z, T / 4, F / 4)."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = [config.width, *(factor * config.width for factor in config.multipliers)]
        last = len(config.multipliers) - 1
        self.conv_in = nn.Conv2d(1, config.width, 3, padding=1)
        self.levels = nn.Sequential(
            *(
                Level(
                    widths[index],
                    widths[index + 1],
                    config.res_blocks,
                    config.norm_groups,
                    Downsample(widths[index + 1]) if index < last else None,
                )
                for index in range(last + 1)
            )
        )
        self.middle = Middle(widths[-1], config.norm_groups)
        self.norm_out = GroupNorm(config.norm_groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, mel: Tensor) -> Tensor:
        """Moments before the last 1x1 convolution."""
        h = self.middle(self.levels(self.conv_in(mel)))
        return self.conv_out(F.silu(self.norm_out(h)))  # type: ignore[no-any-return]


class MelDecoder(nn.Module):
    """(B, Z, T / 4, F / 4) -> (B, 1, T, F)."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = [factor * config.width for factor in reversed(config.multipliers)]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.middle = Middle(widths[0], config.norm_groups)
        self.levels = nn.Sequential(
            *(
                Level(
                    widths[max(index - 1, 0)],
                    widths[index],
                    config.res_blocks + 1,
                    config.norm_groups,
                    Upsample(widths[index]) if index < last else None,
                )
                for index in range(last + 1)
            )
        )
        self.norm_out = GroupNorm(config.norm_groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 1, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """Log-mel spectrogram."""
        h = self.levels(self.middle(self.conv_in(latents)))
        return self.conv_out(F.silu(self.norm_out(h)))  # type: ignore[no-any-return]


class MelVae(nn.Module):
    """Log-mel spectrogram <-> Gaussian latents.

    Args:
        config: Sizes.
    """

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = MelEncoder(config)
        self.decoder = MelDecoder(config)
        self.to_moments = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.from_latents = nn.Conv2d(config.latent_channels, config.latent_channels, 1)

    def encode(self, mel: Tensor) -> Posterior:
        """Posterior of a log-mel spectrogram (B, 1, T, F); T and F must be divisible by 4 (2 per level change)."""
        mean, log_variance = self.to_moments(self.encoder(mel)).chunk(2, dim=1)
        return Posterior(mean=mean, log_variance=log_variance.clamp(*LOG_VARIANCE_RANGE))

    def decode(self, latents: Tensor) -> Tensor:
        """Log-mel spectrogram (B, 1, T, F) of latents (B, Z, T / 4, F / 4), unscaled."""
        return self.decoder(self.from_latents(latents))  # type: ignore[no-any-return]

    def forward(self, mel: Tensor) -> Tensor:
        """Reconstruction through the posterior's mean, (B, 1, T, F)."""
        return self.decode(self.encode(mel).mean)
