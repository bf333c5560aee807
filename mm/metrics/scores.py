"""Scores of answers, of rankings and of language models."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def normalise_answer(text: str) -> str:
    """Lower case, single spaces, no full stop at the end: differences that are not wrong answers.

    Example:
        >>> normalise_answer("  A  Dog. ")
        'a dog'
    """
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Share of predictions that equal their reference after `normalise_answer`.

    Raises:
        ValueError: no pair, or lists of different length.

    Example:
        >>> exact_match(["Two.", "red"], ["two", "blue"])
        0.5
    """
    if len(predictions) != len(references) or not references:
        raise ValueError(f"need pairs, got {len(predictions)} predictions and {len(references)} references")
    hits = [normalise_answer(a) == normalise_answer(b) for a, b in zip(predictions, references, strict=True)]
    return sum(hits) / len(hits)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of rows whose largest logit is the label; a tie between classes counts as wrong.

    Args:
        logits: (B, C), any float dtype.
        labels: (B,) int.
    """
    picked = logits.gather(1, labels[:, None])
    others = torch.ones_like(logits, dtype=torch.bool).scatter(1, labels[:, None], False)
    beaten = ((logits >= picked) & others).any(dim=1) | picked[:, 0].isnan()
    return 1.0 - beaten.float().mean().item()


def recall_at_k(scores: Tensor, relevant: Tensor, k: int) -> float:
    """Mean over queries of the share of their relevant items among the first k.

    Items with equal scores rank behind each other's irrelevant ones, so a model that gives one score to everything
    gets 0 and not a lucky order.

    Args:
        scores: Query-by-item similarity, (Q, N), any float dtype; larger is better.
        relevant: True where an item belongs to the query, (Q, N) bool; every row needs at least one.
        k: Length of the list, 1 to N.

    Raises:
        ValueError: shapes differ, k is out of range, or a query has nothing to find.

    Example:
        >>> recall_at_k(torch.eye(3), torch.eye(3, dtype=torch.bool), k=1)
        1.0
    """
    return torch.stack([found.float().mean() for found in _found_at_k(scores, relevant, k)]).mean().item()


def hit_at_k(scores: Tensor, relevant: Tensor, k: int) -> float:
    """Share of queries with at least one relevant item among the first k: what image-text retrieval calls R@k.

    Arguments, ties and errors as `recall_at_k`; with one relevant item per query both are the same.

    Example:
        >>> scores, relevant = torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([[True, True, False]])
        >>> hit_at_k(scores, relevant, 1), recall_at_k(scores, relevant, 1)
        (1.0, 0.5)
    """
    return torch.stack([found.any().float() for found in _found_at_k(scores, relevant, k)]).mean().item()


def _found_at_k(scores: Tensor, relevant: Tensor, k: int) -> Iterator[Tensor]:
    """For every query: which of its relevant items are among the first k, (R,) bool."""
    if scores.shape != relevant.shape or not 1 <= k <= scores.shape[1]:
        raise ValueError(f"need one shape and 1 <= k <= N, got {tuple(scores.shape)}, {tuple(relevant.shape)}, k={k}")
    if not relevant.any(dim=1).all():
        raise ValueError(f"query {int((~relevant.any(dim=1)).nonzero()[0])} has no relevant item")
    for row, wanted in zip(scores, relevant, strict=True):
        hits = row[wanted].sort(descending=True).values  # (R,)
        ahead = (row[~wanted][None] >= hits[:, None]).sum(dim=1)  # irrelevant items before each, ties against us
        place = ahead + torch.arange(len(hits), device=row.device)
        yield (place < k) & ~hits.isnan()


def token_nll(logits: Tensor, labels: Tensor) -> tuple[float, int]:
    """Negative log-likelihood of the next tokens, summed, and how many there are.

    Args:
        logits: Output at every position, (B, N, V), any float dtype; summed in float32.
        labels: Tokens at the same positions, (B, N) int; position i is predicted at i - 1, -100 is left out.
    """
    following = labels[:, 1:].flatten()
    losses = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), following, ignore_index=-100, reduction="sum")
    return losses.item(), int((following != -100).sum())


def perplexity(nll: float, tokens: int) -> float:
    """exp of the mean negative log-likelihood.

    Raises:
        ValueError: no token.

    Example:
        >>> round(perplexity(3 * math.log(7.0), 3), 6)
        7.0
    """
    if tokens < 1:
        raise ValueError("perplexity needs at least one token that is not -100")
    return math.exp(nll / tokens)
