"""What serving engines ask of a pruner: embeddings in, a keep mask and an exact count out.

An engine reserves one placeholder per visual token before the encoder has run, so the number must follow from sizes
alone; afterwards it wants to know which embeddings to keep. Both are pure functions here: no model, no hooks, no state.
Dims: n tokens of one picture, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mm.pruning.base import Pruned, Pruner, check_target
from mm.pruning.peers.whole_encoder import top


@dataclass(frozen=True)
class Retention:
    """Which embeddings of one picture stay."""

    keep: Tensor
    """(n,) bool."""
    count: int
    """Number of True values; known before the encoder ran."""


def retained_count(tokens: int, target: int) -> int:
    """Tokens that stay of a picture with `tokens` of them.

    Raises:
        ValueError: the target is not a whole number of at least 1, or there are no tokens.

    Example:
        >>> retained_count(576, 64), retained_count(40, 64)
        (64, 40)
    """
    check_target(target, "target")
    check_target(tokens, "tokens")
    return min(tokens, target)


def retention(embeddings: Tensor, target: int, scores: Tensor | None = None) -> Retention:
    """Decide by scores, or by the embeddings alone.

    Args:
        embeddings: Visual embeddings of one picture, (n, D), any float dtype.
        target: Tokens to keep.
        scores: One score per token, (n,), higher stays, for instance `Pruned.scores`. None rates by `embedding_flow`.

    Returns:
        A mask with exactly `retained_count(n, target)` True values. Equal scores: the lower token stays.

    Raises:
        ValueError: shapes do not match, or a score is not a number.

    Example:
        >>> retention(torch.eye(4), 2, torch.tensor([0.1, 0.4, 0.4, 0.2])).keep.tolist()
        [False, True, True, False]
    """
    if embeddings.ndim != 2:
        raise ValueError(f"embeddings must be (n, D) of one picture, got {tuple(embeddings.shape)}")
    count = retained_count(len(embeddings), target)
    rated = embedding_flow(embeddings) if scores is None else scores.float()
    if rated.shape != (len(embeddings),):
        raise ValueError(f"scores must be ({len(embeddings)},), one per embedding, got {tuple(rated.shape)}")
    if not bool(rated.isfinite().all()):
        raise ValueError("scores hold values that are not finite; the encoder probably overflowed")
    keep = torch.zeros(len(rated), dtype=torch.bool, device=rated.device)
    keep[top(rated, count)] = True
    return Retention(keep, count)


def embedding_flow(embeddings: Tensor) -> Tensor:
    """The part of the information-flow score that needs nothing but the embeddings, (n,) float32.

    Similarity to the mean embedding (softmax over tokens, scaled by 1 / sqrt(D)) times the L1 norm: the semantic and
    density criteria with the embeddings in the place of value vectors.
    """
    embeddings = embeddings.float()
    guide = embeddings.mean(dim=0)
    similarity = (embeddings @ guide * embeddings.shape[1] ** -0.5).softmax(dim=0)
    return similarity * embeddings.abs().sum(dim=1)


def retentions(pruner: Pruner, pruned: Pruned, sizes: Sequence[int] | None = None) -> list[Retention]:
    """The contract's form of what an encoder-side method did.

    Args:
        pruner: The method; it must select tokens, not merge them.
        pruned: Result of `pruner.encode`.
        sizes: Tokens of each unpruned picture; None takes the width of `pruned.scores`.

    Raises:
        ValueError: the method works inside the language model, or appends merged tokens.
    """
    name = type(pruner).__name__
    if pruner.stage != "encoder":
        raise ValueError(f"{name} decides inside the language model; use a method that works in the encoder")
    results = []
    for row, index in enumerate(pruned.keep_indices):
        real = index if pruned.keep is None else index[pruned.keep[row]]
        if bool((real < 0).any()):
            raise ValueError(f"{name} appends merged tokens that no mask over the unpruned ones can describe")
        size = pruned.scores.shape[1] if sizes is None else sizes[row]
        keep = torch.zeros(size, dtype=torch.bool, device=index.device)
        keep[real] = True
        results.append(Retention(keep, len(real)))
    return results
