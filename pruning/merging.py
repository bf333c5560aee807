"""Fold dropped tokens into the kept ones they resemble.

Dims: B pictures, n tokens before, m tokens kept, H heads, d head channels, D width, P prefix tokens, u patches per
unit.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from mm.pruning.ragged import gather_rows
from mm.pruning.towers import Stream


def nearest_kept(keys: Tensor, columns: Tensor, keep: Tensor | None) -> Tensor:
    """Which kept token each token resembles most, by the cosine of their keys.

    Args:
        keys: One vector per token, (B, n, d).
        columns: Kept tokens, (B, m) int64.
        keep: True where a kept token is real, (B, m), or None.

    Returns:
        Numbers into `columns`, (B, n) int64; ties go to the lower number.
    """
    unit = F.normalize(keys.float(), dim=-1)
    similarity = unit @ gather_rows(unit, columns).transpose(1, 2)  # (B, n, m)
    if keep is not None:
        similarity = similarity.masked_fill(~keep[:, None], -torch.inf)
    return similarity.argmax(dim=2)


def fold_into_kept(
    before: Stream, after: Stream, columns: Tensor, keep: Tensor | None, key: Tensor, scores: Tensor
) -> Stream:
    """Replace each kept token by the score-weighted mean of itself and the dropped tokens nearest to it.

    Args:
        before: Stream in front of the cut.
        after: Stream behind it.
        columns: Kept units, (B, m).
        keep: True where a kept unit is real, (B, m), or None.
        key: Keys of the block, (B, H, P + n u, d).
        scores: Running scores of the units, (B, n) float32, not negative.
    """
    per_unit = key[:, :, before.prefix :].float().mean(dim=1).unflatten(1, (-1, before.unit)).mean(dim=2)
    home = nearest_kept(per_unit, columns, keep)  # (B, n)
    own = torch.arange(columns.shape[1], device=columns.device).expand_as(columns)
    # a kept token belongs to itself, whatever its neighbours look like; padding columns repeat column 0 and write last
    real = torch.ones_like(columns, dtype=torch.bool) if keep is None else keep
    spare = home.new_zeros(len(home), home.shape[1] + 1)
    spare[:, :-1] = home
    home = spare.scatter(1, columns.masked_fill(~real, home.shape[1]), own)[:, :-1]
    weight = scores if before.keep is None else scores.masked_fill(~before.keep, 0.0)
    patches = before.hidden[:, before.prefix :].unflatten(1, (-1, before.unit)).flatten(2)  # (B, n, u D)
    total = torch.zeros_like(gather_rows(patches, columns), dtype=torch.float32)
    total = total.scatter_add(1, home[..., None].expand_as(patches), patches.float() * weight[..., None])
    mass = torch.zeros_like(columns, dtype=torch.float32).scatter_add(1, home, weight)
    merged = (total / mass.clamp(min=torch.finfo(torch.float32).tiny)[..., None]).to(patches.dtype)
    merged = torch.where((mass > 0)[..., None], merged, gather_rows(patches, columns))
    merged = merged.unflatten(2, (before.unit, -1)).flatten(1, 2)
    return replace(after, hidden=torch.cat([after.hidden[:, : after.prefix], merged], dim=1))
