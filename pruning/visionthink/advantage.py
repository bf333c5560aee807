"""Advantages of group-relative policy optimisation: how much better a rollout did than its group.

Source: VisionThink (Yang et al. 2025, arXiv:2507.13348), section 3.2; GRPO (Shao et al. 2024, arXiv:2402.03300).
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-6


def grpo_advantages(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """(reward - mean) / (std + 1e-6) within each group; the standard deviation has n - 1 in its denominator.

    Args:
        rewards: One total per rollout, (N,) float.
        group_ids: The prompt each rollout belongs to, (N,) integer.

    Returns:
        (N,) in the dtype of `rewards`. A rollout that is alone in its group keeps its reward (mean 0, deviation 1).

    Raises:
        ValueError: the two do not have one value per rollout.

    Example:
        >>> grpo_advantages(torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1])).tolist()
        [0.7071057558059692, -0.7071057558059692, 0.0, 0.0]
    """
    if rewards.ndim != 1 or rewards.shape != group_ids.shape:
        raise ValueError(f"rewards and group_ids must be (N,), got {tuple(rewards.shape)} and {tuple(group_ids.shape)}")
    _, group, sizes = torch.unique(group_ids, return_inverse=True, return_counts=True)
    zeros = rewards.new_zeros(len(sizes))
    mean = zeros.index_add(0, group, rewards) / sizes  # (G,)
    centred = rewards - mean[group]
    variance = zeros.index_add(0, group, centred.square()) / (sizes - 1).clamp_min(1)
    alone = (sizes == 1)[group]
    return torch.where(alone, rewards / (1 + EPS), centred / (variance.sqrt()[group] + EPS))
