"""Rewards of one group of rollouts: accuracy, format, and the penalty that decides when asking is worth it.

The penalty looks at the correct rollouts of the group. r is the share of them that answered directly: where few do,
direct answers are lucky guesses and lose a little; otherwise calls do. The paper and the published code differ:

    paper:    P = p_direct [direct] if r < theta else p_tool [called], for correct rollouts
    release:  every correct call loses p_tool; correct direct answers lose p_direct if 0 < r < theta

so that the release never rewards a call, it only takes its disadvantage away.
Source: VisionThink (Yang et al. 2025, arXiv:2507.13348), section 3.3, and the published reward code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Rule = Literal["release", "paper"]
Flags = Sequence[int | float | bool] | Tensor


class GroupRewards(NamedTuple):
    """The parts of the rewards of n rollouts of one prompt; accuracy and calls stay apart from the penalty."""

    accuracy: Tensor
    """0 or 1, (n,) float32."""
    called: Tensor
    """Whether the tool was called, validly or not, (n,) bool."""
    format: Tensor
    """Weighted format score, (n,) float32."""
    penalty: Tensor
    """What is taken off, (n,) float32."""
    ratio: float
    """Share r of direct answers among the correct rollouts; 0 where none is correct."""

    @property
    def total(self) -> Tensor:
        """accuracy + format - penalty, (n,) float32."""
        return self.accuracy + self.format - self.penalty


def group_reward_parts(
    correct: Flags,
    tool_count: Flags,
    format_ok: Flags,
    *,
    rule: Rule = "release",
    theta: float = 0.2,
    tool_penalty: float = 0.1,
    direct_penalty: float = 0.1,
    format_weight: float = 0.5,
) -> GroupRewards:
    """The parts of the rewards of one group; arguments as for `group_rewards`."""
    if rule not in ("release", "paper"):
        raise ValueError(f"unknown rule {rule!r}; choose 'release' or 'paper'")
    right, calls, tidy = (torch.as_tensor(x, dtype=torch.float32) for x in (correct, tool_count, format_ok))
    if right.ndim != 1 or right.shape != calls.shape or right.shape != tidy.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (right, calls, tidy))
        raise ValueError(f"correct, tool_count and format_ok must have one value per rollout, got shapes {shapes}")
    called = calls > 0
    direct_right, tool_right = (right > 0) & ~called, (right > 0) & called
    many, few = int(direct_right.sum()), int((right > 0).sum())
    if rule == "release":
        ratio = many / (few + 1e-4)  # the published guard against 0 / 0; it makes ties fall below theta
        asked = tool_right * tool_penalty
        guessed = direct_right * (direct_penalty if 0 < ratio < theta else 0.0)
    else:
        ratio = many / few if few else 0.0
        asked = tool_right * (tool_penalty if ratio >= theta else 0.0)
        guessed = direct_right * (direct_penalty if ratio < theta else 0.0)
    return GroupRewards(right, called, format_weight * tidy, asked + guessed, ratio)


def group_rewards(
    correct: Flags,
    tool_count: Flags,
    format_ok: Flags,
    *,
    rule: Rule = "release",
    theta: float = 0.2,
    tool_penalty: float = 0.1,
    direct_penalty: float = 0.1,
    format_weight: float = 0.5,
) -> Tensor:
    """Total rewards of the rollouts of one prompt.

    Args:
        correct: 0 or 1 per rollout (n).
        tool_count: Attempted calls per rollout (n).
        format_ok: 0 or 1 per rollout (n), see `format_reward`.
        rule: "release" as published in code, "paper" as published in print.
        theta: Threshold of the share of direct answers; 0 leaves only the penalty on calls.
        tool_penalty: Taken off a correct rollout that called.
        direct_penalty: Taken off a correct direct answer below the threshold.
        format_weight: Weight of the format score.

    Returns:
        (n,) float32.

    Raises:
        ValueError: unequal lengths or an unknown rule.

    Example:
        >>> group_rewards([1, 1, 0], [0, 1, 0], [1, 1, 1]).tolist()
        [1.5, 1.399999976158142, 0.5]
    """
    options = {"theta": theta, "tool_penalty": tool_penalty, "direct_penalty": direct_penalty}
    return group_reward_parts(correct, tool_count, format_ok, rule=rule, format_weight=format_weight, **options).total


def labelled_reward(
    correct: Flags,
    called: Flags,
    wants_tool: Flags,
    format_ok: Flags,
    *,
    amount: float = 0.1,
    strict: bool = False,
    format_weight: float = 0.5,
) -> Tensor:
    """Rewards of rollouts whose prompts are labelled: calling against the label costs `amount`.

    Args:
        correct, called, format_ok: 0 or 1 per rollout (n).
        wants_tool: The label, 0 or 1 per rollout (n).
        amount: Price of a mismatch.
        strict: True takes it off every mismatch; False scales the accuracy, which leaves wrong answers alone.
        format_weight: Weight of the format score.

    Returns:
        (n,) float32.
    """
    right, used, label, tidy = (
        torch.as_tensor(x, dtype=torch.float32) for x in (correct, called, wants_tool, format_ok)
    )
    mismatch = (used != label).float()
    accuracy = right - amount * mismatch if strict else right * (1 - amount * mismatch)
    return accuracy + format_weight * tidy


def keeps_group(total: Tensor, *, failed: bool = False, least_std: float = 1e-4) -> bool:
    """Whether a group teaches anything: no judge failed in it and its rewards differ (dynamic sampling)."""
    return not failed and len(total) > 1 and float(total.std()) >= least_std
