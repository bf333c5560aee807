"""How many patches leave the encoder after which layer.

The paper lets the attention entropy decide: a layer whose guide attends to few patches has found what matters, so many
may go; a layer that looks everywhere drops none. The last cut is unconditional and leaves exactly the target.
Layers are counted from 0; the remaining layers at layer l are R = last_cut - l.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Schedule = Literal["adaptive", "uniform", "fixed", "last"]


def cut_layers(last_cut: int, interval: int) -> list[int]:
    """Layers after which patches may be dropped: every `interval`-th, counted back from the last one.

    Example:
        >>> cut_layers(21, interval=2)
        [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21]
    """
    return [layer for layer in range(last_cut + 1) if (last_cut - layer) % interval == 0]


def dropped_count(counts: Tensor, targets: Tensor, remaining: int, ratio: Tensor) -> Tensor:
    """Patches that the adaptive rule drops: round((N - T) / sqrt(R) * (1 - r^2)), halves to even; never negative.

    Args:
        counts: Patches now (N), (B,) int64.
        targets: Patches wanted at the end (T), (B,) int64.
        remaining: Layers until the last cut (R), at least 1.
        ratio: Entropy of the layer's guide attention relative to ln N (r), (B,) float32.

    Source: paper section 3.1; the count, not the ratio that the paper's listing names.
    """
    excess = (counts - targets).clamp(min=0)
    return torch.round(excess / remaining**0.5 * (1 - ratio**2)).long().clamp(min=0)


def adaptive_counts(counts: Tensor, targets: Tensor, remaining: int, ratio: Tensor, *, batch_max: bool) -> Tensor:
    """Patches left after a cut of the adaptive schedule, (B,) int64.

    Args:
        counts: See `dropped_count`.
        targets: See `dropped_count`.
        remaining: Layers until the last cut; 0 cuts to the target.
        ratio: See `dropped_count`.
        batch_max: Drop the batch's largest count everywhere, as the published code does; then a picture's result
            depends on its neighbours.
    """
    floor = torch.minimum(counts, targets)
    if remaining == 0:
        return floor
    dropped = dropped_count(counts, targets, remaining, ratio)
    if batch_max:
        dropped = dropped.amax().expand_as(dropped)
    return torch.maximum(counts - dropped, floor)


def constant_ratio_counts(patches: int, target: int, cuts: Sequence[int], ratio: float) -> list[int]:
    """Patches left after each cut if every layer had the same entropy ratio: for cost estimates.

    Example:
        >>> constant_ratio_counts(576, 64, cut_layers(21, 2), ratio=0.5)
        [490, 415, 349, 292, 243, 201, 165, 134, 108, 85, 64]
    """
    counts, left = torch.tensor([patches]), []
    for layer in cuts:
        ratios = torch.tensor([ratio])
        counts = adaptive_counts(counts, torch.tensor([target]), cuts[-1] - layer, ratios, batch_max=False)
        left.append(int(counts))
    return left


def uniform_counts(patches: int, target: int, cuts: int) -> list[int]:
    """Every cut keeps the same share of what is there (the paper's non-adaptive control).

    Example:
        >>> uniform_counts(64, 8, cuts=3)
        [32, 16, 8]
    """
    return [round(patches * (target / patches) ** (event / cuts)) for event in range(1, cuts)] + [target]


def check_fixed_counts(counts: Sequence[int], cuts: int, target: int) -> None:
    """A table of counts must fit the cuts, never grow and end at the target.

    Raises:
        ValueError: it does not.
    """
    if len(counts) != cuts:
        raise ValueError(f"counts: this encoder has {cuts} cuts, the schedule lists {len(counts)}: {tuple(counts)}")
    if list(counts) != sorted(counts, reverse=True) or counts[-1] != target:
        raise ValueError(f"counts must fall and end at target_tokens={target}, got {tuple(counts)}")


def rounded_counts(counts: Sequence[float], target: int, multiple: int) -> tuple[int, ...]:
    """Average counts -> whole ones: up to the next multiple (kind to kernels), never growing, ending at the target.

    Example:
        >>> rounded_counts([54.2, 41.3, 16.0], target=16, multiple=8)
        (56, 48, 16)
    """
    whole, ceiling = [], None
    for count in counts[:-1]:
        value = max(-(-round(count) // multiple) * multiple, target)
        value = value if ceiling is None else min(value, ceiling)
        whole.append(value)
        ceiling = value
    return (*whole, target)
