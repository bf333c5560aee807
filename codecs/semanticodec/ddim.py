"""DDIM: the released sampler, deterministic (eta 0) or stochastic (eta 1, the released default).

    x_prev = sqrt(abar_p) x0 + sqrt(1 - abar_p - sigma^2) eps + sigma z
    sigma  = eta sqrt((1 - abar_p) / (1 - abar)) sqrt(1 - abar / abar_p)

Source: Song et al., arXiv:2010.02502, equations 12 and 16, on the v-prediction of `schedule.py`. x0 is not clipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mm.codecs.semanticodec.schedule import NoiseSchedule, Spacing, sampling_timesteps

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x (B, C, T, F), timesteps (B,) int64) -> v of the same shape; guidance is inside."""


@dataclass(frozen=True, kw_only=True)
class SubSchedule:
    """What a sampler of S steps needs, ascending in time, float64 on the CPU."""

    timesteps: list[int]
    """Visited timesteps, (S,)."""
    alphas: Tensor
    """abar at them, (S,)."""
    alphas_prev: Tensor
    """abar of the step below, (S,); of the first one abar_0, not 1."""


def sub_schedule(alphas_cumprod: Tensor, steps: int, spacing: Spacing = "leading") -> SubSchedule:
    """Pick the steps of a sampler out of the table abar_t (T,)."""
    table = alphas_cumprod.detach().double().cpu()
    timesteps = sampling_timesteps(steps, spacing=spacing, num_timesteps=len(table))
    alphas = table[timesteps]
    return SubSchedule(timesteps=timesteps, alphas=alphas, alphas_prev=torch.cat([table[:1], alphas[:-1]]))


def sigmas_of(chosen: SubSchedule, eta: float) -> Tensor:
    """Standard deviation of the noise that each step adds, (S,) float64."""
    posterior = (1 - chosen.alphas_prev) / (1 - chosen.alphas) * (1 - chosen.alphas / chosen.alphas_prev)
    return eta * posterior.sqrt()


def ddim(
    denoise: Denoise,
    x: Tensor,
    schedule: NoiseSchedule,
    *,
    steps: int,
    eta: float = 0.0,
    noise: Callable[[], Tensor] | None = None,
    spacing: Spacing = "leading",
    on_step: Callable[[Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Latents from noise.

    Args:
        denoise: The guided network.
        x: Standard normal noise, (B, C, T, F).
        schedule: Noise levels.
        steps: Wanted steps, see `sampling_timesteps`.
        eta: 0 is deterministic, 1 has the variance of ancestral sampling.
        noise: Draws the noise of one step in the shape of `x`; needed if eta > 0, also in the last step.
        spacing: See `sampling_timesteps`.
        on_step: Sees (x_prev, x0) after every step.

    Returns:
        Clean latents, (B, C, T, F).

    Raises:
        ValueError: eta outside [0, 1], or above 0 without `noise`.
    """
    if not 0 <= eta <= 1 or (eta and noise is None):
        raise ValueError(f"eta must lie in [0, 1] and needs a source of noise if above 0, got {eta}")
    chosen = sub_schedule(schedule.alphas_cumprod, steps, spacing)
    sigmas = sigmas_of(chosen, eta)
    for index in reversed(range(len(chosen.timesteps))):
        timesteps = torch.full((len(x),), chosen.timesteps[index], device=x.device)
        x0, eps = schedule.clean_and_noise(x, denoise(x, timesteps), timesteps)
        previous, sigma = float(chosen.alphas_prev[index]), float(sigmas[index])
        x = previous**0.5 * x0 + (1 - previous - sigma**2) ** 0.5 * eps
        if eta and noise is not None:
            x = x + sigma * noise()
        if on_step is not None:
            on_step(x, x0)
    return x
