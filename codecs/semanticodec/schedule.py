"""Noise levels of the latent diffusion, and the three ways to name a point on its path.

    x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps        v = sqrt(abar_t) eps - sqrt(1 - abar_t) x0
    x0  = sqrt(abar_t) x_t - sqrt(1 - abar_t) v         eps = sqrt(abar_t) v + sqrt(1 - abar_t) x_t

Source: SemantiCodec (arXiv:2405.00233), section III-C; v-prediction of Salimans and Ho (arXiv:2202.00512).
Deviation: the paper names a cosine schedule with zero terminal signal, the released configuration a linear one. Both
are here, cosine is the default of a new model, and a released file brings its own table.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from mm.codecs.semanticodec.config import DiffusionConfig

Spacing = Literal["leading", "trailing"]


def betas_of(config: DiffusionConfig) -> np.ndarray:
    """Noise added per step, (T,) float64.

    "linear": squares of a line between the roots of its two ends. "cosine": squared cosine, unclipped, so that the last
    step leaves no signal. "stored" starts as "linear" and is meant to be overwritten by a file.
    """
    if config.schedule == "cosine":
        position = np.arange(config.timesteps + 1, dtype=np.float64) / config.timesteps + config.cosine_offset
        signal = np.cos(position / (1 + config.cosine_offset) * np.pi / 2) ** 2
        signal[-1] = 0.0  # cos(pi / 2) is 6e-17 in floating point
        return 1 - signal[1:] / signal[:-1]
    low, high = math.sqrt(config.linear_start), math.sqrt(config.linear_end)
    return torch.linspace(low, high, config.timesteps, dtype=torch.float64).square().numpy()


def schedule_tables(betas: np.ndarray) -> dict[str, Tensor]:
    """The twelve tables that released checkpoints carry, computed in float64, (T,) float32 each.

    With zero terminal signal the two reciprocal tables end in infinity, as they must.
    """
    alphas_cumprod = np.cumprod(1.0 - betas)
    previous = np.append(1.0, alphas_cumprod[:-1])
    variance = betas * (1.0 - previous) / (1.0 - alphas_cumprod)
    with np.errstate(divide="ignore"):
        tables = {
            "betas": betas,
            "alphas_cumprod": alphas_cumprod,
            "alphas_cumprod_prev": previous,
            "sqrt_alphas_cumprod": np.sqrt(alphas_cumprod),
            "sqrt_one_minus_alphas_cumprod": np.sqrt(1.0 - alphas_cumprod),
            "log_one_minus_alphas_cumprod": np.log(1.0 - alphas_cumprod),
            "sqrt_recip_alphas_cumprod": np.sqrt(1.0 / alphas_cumprod),
            "sqrt_recipm1_alphas_cumprod": np.sqrt(1.0 / alphas_cumprod - 1),
            "posterior_variance": variance,
            "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
            "posterior_mean_coef1": betas * np.sqrt(previous) / (1.0 - alphas_cumprod),
            "posterior_mean_coef2": (1.0 - previous) * np.sqrt(1.0 - betas) / (1.0 - alphas_cumprod),
        }
    return {name: torch.tensor(values, dtype=torch.float32) for name, values in tables.items()}


def signal_table(config: DiffusionConfig) -> Tensor:
    """abar_t of a configured schedule, (T,) float32."""
    return schedule_tables(betas_of(config))["alphas_cumprod"]


def with_schedule_of(config: DiffusionConfig, alphas_cumprod: Tensor) -> DiffusionConfig:
    """`config` with the name of the schedule that a table (T,) belongs to; "stored" if it is neither of ours."""
    table = alphas_cumprod.detach().float().cpu()
    for kind in ("cosine", "linear"):
        named = replace(config, schedule=kind, timesteps=len(table))
        if torch.allclose(table, signal_table(named), atol=1e-6, rtol=0):
            return named
    return replace(config, schedule="stored", timesteps=len(table))


class NoiseSchedule(nn.Module):
    """The table abar_t as part of a model, so that a checkpoint decides over it.

    Args:
        config: Names the schedule, see `betas_of`.
    """

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        # Bits of the float32 numbers as integers: a model cast to, or stored in, half precision keeps its exact table.
        self.register_buffer("table_bits", signal_table(config).view(torch.int32))
        self.table_bits: Tensor

    @property
    def alphas_cumprod(self) -> Tensor:
        """abar_t, (T,) float32: share of the signal's power left at timestep t."""
        return self.table_bits.view(torch.float32)

    @property
    def num_timesteps(self) -> int:
        """T."""
        return len(self.table_bits)

    def set_table(self, alphas_cumprod: Tensor) -> None:
        """Replace the table by that of a checkpoint, (T,)."""
        bits = alphas_cumprod.detach().to(self.table_bits.device, torch.float32).contiguous().view(torch.int32)
        self.table_bits = bits.clone()

    def levels(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t) of each item, shaped to broadcast over `like` (B, ...), float32."""
        share = self.alphas_cumprod[timesteps].reshape(-1, *[1] * (like.dim() - 1))
        return share.sqrt(), (1 - share).sqrt()

    def noisy(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t at `timesteps` (B,) int64 of clean latents `x0` (B, ...) and `noise` of the same shape."""
        signal, spread = self.levels(timesteps, x0)
        return signal * x0 + spread * noise

    def velocity(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """v, the training target, (B, ...)."""
        signal, spread = self.levels(timesteps, x0)
        return signal * noise - spread * x0

    def clean_and_noise(self, x: Tensor, v: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """(x0, eps) that a network output `v` stands for at `x` = x_t, both (B, ...)."""
        signal, spread = self.levels(timesteps, x)
        return signal * x - spread * v, signal * v + spread * x


def sampling_timesteps(steps: int, *, spacing: Spacing = "leading", num_timesteps: int = 1000) -> list[int]:
    """Timesteps that a sampler visits, ascending.

    Args:
        steps: Wanted number of steps (S), 1 to T.
        spacing: "leading" is the released rule, 1 + c i with c = floor(T / S), which never reaches the last timestep
            and gives another number of steps where S does not divide T. "trailing" counts down from T - 1 in exactly S
            steps; a schedule without terminal signal needs it (Lin et al., arXiv:2305.08891).
        num_timesteps: Length of the table (T).

    Raises:
        ValueError: steps outside 1..T, or a leading rule that runs past the table (its first timestep would be T).

    Example:
        >>> sampling_timesteps(5), sampling_timesteps(5, spacing="trailing")
        ([1, 201, 401, 601, 801], [199, 399, 599, 799, 999])
    """
    if not 1 <= steps <= num_timesteps:
        raise ValueError(f"steps must lie in 1..{num_timesteps}, got {steps}")
    if spacing == "trailing":
        return sorted({round(num_timesteps - i * num_timesteps / steps) - 1 for i in range(steps)})
    if spacing != "leading":
        raise ValueError(f"spacing must be 'leading' or 'trailing', got {spacing!r}")
    chosen = [1 + i for i in range(0, num_timesteps, num_timesteps // steps)]
    if chosen[-1] >= num_timesteps:
        strides = {num_timesteps // fewer: fewer for fewer in range(1, steps + 1)}
        working = max(fewer for stride, fewer in strides.items() if (num_timesteps - 1) % stride)
        raise ValueError(
            f"{steps} steps with leading spacing would visit timestep {chosen[-1]} of {num_timesteps}; "
            f"use {working} steps or trailing spacing"
        )
    return chosen
