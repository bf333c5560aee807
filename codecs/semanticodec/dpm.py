"""DPM-Solver++ (2M) from `diffusers`: the quality of 25 to 50 DDIM steps in 10 to 20.

Source: Lu et al., arXiv:2211.01095. The network call, the timesteps and the noise levels are ours; the library only
combines the outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mm.codecs.semanticodec.ddim import Denoise
from mm.codecs.semanticodec.schedule import NoiseSchedule, Spacing, sampling_timesteps
from mm.extras import require

SMALLEST_SIGNAL = 2.0**-24  # the solver works in log(abar), which zero terminal signal would send to -infinity


def dpm_solver(
    denoise: Denoise, x: Tensor, schedule: NoiseSchedule, *, steps: int, spacing: Spacing = "leading"
) -> Tensor:
    """Latents from noise, deterministic.

    Args:
        denoise: The guided network.
        x: Standard normal noise, (B, C, T, F).
        schedule: Noise levels.
        steps: Steps, see `sampling_timesteps`.
        spacing: See `sampling_timesteps`.

    Returns:
        Clean latents, (B, C, T, F).

    Raises:
        ImportError: without diffusers.
    """
    solver = _solver(schedule)
    timesteps = sampling_timesteps(steps, spacing=spacing, num_timesteps=schedule.num_timesteps)[::-1]
    solver.set_timesteps(timesteps=timesteps, device=x.device)
    for timestep in timesteps:
        v = denoise(x, torch.full((len(x),), timestep, device=x.device))
        x = solver.step(v, timestep, x).prev_sample
    return x


def _solver(schedule: NoiseSchedule):  # type: ignore[no-untyped-def]
    diffusers = require("diffusers", extra="audio", purpose="The sampler 'dpm++'")
    share = schedule.alphas_cumprod.double().cpu().clamp(min=SMALLEST_SIGNAL)
    betas = 1 - share / torch.cat([share.new_ones(1), share[:-1]])
    return diffusers.DPMSolverMultistepScheduler(
        num_train_timesteps=schedule.num_timesteps,
        trained_betas=betas.tolist(),
        prediction_type="v_prediction",
        algorithm_type="dpmsolver++",
        solver_order=2,
        final_sigmas_type="zero",
    )
