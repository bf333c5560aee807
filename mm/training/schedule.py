"""Learning rate over the run: a linear warm-up, then a cosine down to a floor.

With warm-up steps W = round(warmup * T) out of T steps, the factor on the configured rate at step s = 0 … T-1 is

    s < W:   (s + 1) / W
    s >= W:  floor + (1 - floor) * (1 + cos(pi * (s - W) / (T - W))) / 2
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Shape = Literal["cosine", "constant"]


def warmup_steps(total_steps: int, warmup: float) -> int:
    """Steps of warm-up: the fraction `warmup` of the run, rounded; at least one step follows it."""
    return min(round(warmup * total_steps), max(total_steps - 1, 0))


def schedule_factor(step: int, *, total_steps: int, warmup: float, floor: float, shape: Shape = "cosine") -> float:
    """Factor on the learning rate at one step.

    Args:
        step: 0 for the first optimiser step; from `total_steps` on the last value is kept.
        total_steps: Optimiser steps of the whole run (T).
        warmup: Fraction of the run with a rising rate, 0 to 1.
        floor: Factor that the cosine ends at, 0 to 1.
        shape: "cosine", or "constant" after the warm-up.

    Example:
        >>> [round(schedule_factor(s, total_steps=8, warmup=0.25, floor=0.0), 3) for s in range(8)]
        [0.5, 1.0, 1.0, 0.933, 0.75, 0.5, 0.25, 0.067]
    """
    rising = warmup_steps(total_steps, warmup)
    if step < rising:
        return (step + 1) / rising
    if shape == "constant":
        return 1.0
    progress = min((step - rising) / max(total_steps - rising, 1), 1.0)
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def build_schedule(
    optimizer: Optimizer, *, total_steps: int, warmup: float, floor: float, shape: Shape = "cosine"
) -> LambdaLR:
    """The schedule as a PyTorch scheduler that advances once per optimiser step."""
    # A partial has no state of its own, so the checkpoint holds the step only and a longer run may resume.
    return LambdaLR(
        optimizer, partial(schedule_factor, total_steps=total_steps, warmup=warmup, floor=floor, shape=shape)
    )
