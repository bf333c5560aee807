"""Spend a part of the budget on what the question asks about: for dense text and charts.

Pruning by the picture alone drops words and axis labels that nobody looks at until somebody asks. Here the encoder
stage keeps more candidates than the target; most of the target goes to the highest running scores as always, the rest
to the candidates nearest to a word of the prompt, compared as the language model sees both (projected tokens against
input embeddings).
Deviation: not part of the paper, which does not know the question in its encoder stage.
Dims: M candidates of one picture, W words, T target, D width of the language model.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CANDIDATES = 2.0
"""Candidates per token of the target."""


def reselect(candidates: Tensor, scores: Tensor, words: Tensor, target: int, text_share: float) -> Tensor:
    """Numbers of the candidates that stay, ascending, (T,) int64; all of them if there are no more than `target`.

    Args:
        candidates: Projected tokens, (M, D).
        scores: Running scores of the candidates, (M,).
        words: Input embeddings of the prompt's text, (W, D); without words everything goes to the scores.
        target: Tokens to keep.
        text_share: Share of them that words choose, 0..1.
    """
    if len(candidates) <= target:
        return torch.arange(len(candidates), device=candidates.device)
    by_text = round(target * text_share) if len(words) else 0
    order = scores.sort(descending=True, stable=True).indices
    chosen = order[: target - by_text]
    if by_text:
        near = relevance(candidates, words).index_fill(0, chosen, -torch.inf)
        chosen = torch.cat([chosen, near.sort(descending=True, stable=True).indices[:by_text]])
    return chosen.sort().values


def relevance(candidates: Tensor, words: Tensor) -> Tensor:
    """How much nearer a candidate is to its nearest word than the average candidate is to that word: (M,) float32.

    Taking the word's average off keeps words that are near to everything from choosing.
    """
    similarity = F.normalize(candidates.float(), dim=-1) @ F.normalize(words.float(), dim=-1).T  # (M, W)
    return (similarity - similarity.mean(dim=0)).amax(dim=1)
