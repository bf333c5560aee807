"""What is remembered about a prompt while its visual tokens leave between blocks.

Dims: B prompts, L tokens of the prompt, n tokens in front of a cut, m behind it, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mm.pruning.llm_stage import Prompt, Selection
from mm.pruning.prompt import IGNORED, left_packed
from mm.pruning.ragged import gather_rows


@dataclass(eq=False)
class Behind:
    """The tokens behind one cut."""

    columns: Tensor
    """Columns of the tokens in front of the cut, (B, n)."""
    chosen: Tensor
    """False where a row is padded because others kept more, (B, n) bool."""
    prompt: Prompt
    """The prompt that is left."""
    selection: Selection
    """What the method decided."""
    real: Tensor
    """Mask over cached and new tokens, (B, n + decoded) bool; grows while decoding."""
    dropped: Tensor
    """Tokens that each prompt has lost so far, (B,) int64."""
    lost_before: Tensor
    """Tokens lost so far in front of each kept one, (B, n) int64."""
    origin: Tensor
    """Columns in the prompt before the first cut, (B, n)."""


@dataclass(eq=False)
class Pass:
    """One call of the model."""

    first: Prompt
    """The prompt in front of all cuts."""
    labels: Tensor | None = None
    """Labels (B, L), taken out of the call; the loss is computed behind the last cut."""
    behind: list[Behind] = field(default_factory=list)
    """One entry per cut that was passed."""
    is_prompt: bool = True
    """False while decoding."""
    new_mask: Tensor | None = None
    """While decoding: mask of the new tokens, (B, q) bool."""


def question_column(real: Tensor, labels: Tensor | None) -> Tensor:
    """Last prompt token before the answer, (B,): the last one before the first trained label, else the last real one.

    Args:
        real: False at padding, (B, L) bool.
        labels: (B, L), -100 where nothing is trained, or None.
    """
    places = torch.arange(real.shape[1], device=real.device)
    last = torch.where(real, places, -1).amax(dim=1)
    if labels is None:
        return last
    trained = (labels != IGNORED) & real
    first = torch.where(trained, places, real.shape[1]).amin(dim=1)
    return torch.where(trained.any(dim=1), (first - 1).clamp(min=0), last)


def leave(now: Pass, prompt: Prompt, selection: Selection) -> Behind:
    """Bookkeeping of one cut."""
    columns, chosen = left_packed(selection.keep)
    lost = (~selection.keep).long().cumsum(dim=1).gather(1, columns)
    dropped = (~selection.keep).sum(dim=1)
    origin = columns
    if now.behind:
        before = now.behind[-1]
        origin, lost = before.origin.gather(1, columns), lost + before.lost_before.gather(1, columns)
        dropped = dropped + before.dropped
    left = prompt.take(columns, chosen)
    return Behind(columns, chosen, left, selection, left.real, dropped, lost, origin)


def take_tokens(hidden: Tensor, behind: Behind) -> Tensor:
    """Hidden states behind a cut: (B, n, D) -> (B, m, D); recycled groups are summed into their first column."""
    home = behind.selection.home
    if home is not None:
        hidden = sum_groups(hidden, home)
    return gather_rows(hidden, behind.columns)


def sum_groups(hidden: Tensor, home: Tensor) -> Tensor:
    """Replace the column `home` by the sum of all columns that point to it; -1 points nowhere.

    Args:
        hidden: (B, n, D).
        home: Column that takes each token, (B, n) int64; a taking column points to itself.
    """
    mine = torch.arange(home.shape[1], device=home.device)
    taking = home == mine
    source = hidden.masked_fill((home < 0)[..., None], 0)
    summed = torch.zeros_like(hidden).scatter_add(1, home.clamp(min=0)[..., None].expand_as(hidden), source)
    return torch.where(taking[..., None], summed, hidden)
