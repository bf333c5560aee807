"""Hard negatives for the match head: the more similar a wrong partner looks, the more often it is drawn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mm.medical.velvet.loss import IGNORE


@dataclass(frozen=True)
class MatchPairs:
    """3 B pairs: the true ones, each volume with a wrong text, each text with a wrong volume."""

    volume: Tensor
    """Index of the volume, (3 B,) int64."""
    text: Tensor
    """Index of the text, (3 B,) int64."""
    labels: Tensor
    """1 = belongs together, 0 = does not, -100 = no negative exists for it, (3 B,) int64."""


def negative_weights(similarity: Tensor, temperature: Tensor | float, positives: Tensor | None = None) -> Tensor:
    """Weights of drawing each text as a wrong partner of each volume: softmax over rows, positives at zero, (B, B).

    Pass the transpose for wrong volumes of texts.
    """
    weights = (similarity.detach() / temperature).softmax(1)
    own = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    return weights.masked_fill(own if positives is None else own | positives, 0.0)


def mine_pairs(
    similarity: Tensor,
    temperature: Tensor | float,
    *,
    positives: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> MatchPairs | None:
    """Pairs for the match head, one hard negative of each kind per sample.

    Args:
        similarity: Report similarity, rows are volumes, (B, B); no gradient flows through the draw.
        temperature: Divides it; smaller draws harder negatives.
        positives: True for pairs that belong together and must not be drawn, (B, B) bool.
        generator: Draws, on the CPU; None uses torch's own where the similarities are.

    Returns:
        The pairs, or None for a batch of one, which has no negatives.
    """
    size = len(similarity)
    if size == 1:
        return None
    temperature = temperature.detach() if isinstance(temperature, Tensor) else temperature
    wrong, exists = [], []
    for scores, same in ((similarity, positives), (similarity.mT, None if positives is None else positives.mT)):
        weights = negative_weights(scores.float(), temperature, same)
        possible = weights.sum(1) > 0
        weights = torch.where(possible[:, None], weights, 1.0)
        wrong.append(_draw(weights, generator))
        exists.append(possible)
    own = torch.arange(size, device=similarity.device)
    negative = torch.where(torch.cat(exists), 0, IGNORE)
    return MatchPairs(
        volume=torch.cat([own, own, wrong[1]]),
        text=torch.cat([own, wrong[0], own]),
        labels=torch.cat([torch.ones_like(own), negative]),
    )


def _draw(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    """One column per row; a generator is the CPU's, so that a seed means the same on every device."""
    where = weights.device if generator is None else generator.device
    u = torch.rand(len(weights), 1, generator=generator, device=where).to(weights.device)
    total = weights.cumsum(1)
    # the first column whose running sum passes u: never one of weight zero
    column = torch.searchsorted(total, u * total[:, -1:], right=True)[:, 0]
    last = weights.shape[1] - 1 - (weights.flip(1) > 0).int().argmax(1)  # rounding must not run past the last weight
    return torch.minimum(column, last)
