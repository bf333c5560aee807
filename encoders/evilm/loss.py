"""The objectives: masked words, masked codes, matching, contrast, retrieval; each a mean that is 0 without targets.

Source: VIOLETv2 (arXiv:2209.01540) for MLM, VTM, MVM and retrieval; ALPRO (arXiv:2112.09583) for VTC.
Dims: B batch, O texts per video, T frames, h w cells, r codes per side of a cell, K codes, X text tokens, V words.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MATCHING_TEMPERATURE = 0.05
"""Divisor of matching logits in training."""


def masked_word_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy (B, X, V) against labels (B, X), -100 ignored; 0 with a graph when all are ignored."""
    return _mean_cross_entropy(logits.flatten(0, 1), labels.flatten())


def masked_code_loss(logits: Tensor, codes: Tensor, keep: Tensor) -> Tensor:
    """Cross-entropy of the codes behind hidden cells.

    Args:
        logits: (B, T, r h, r w, K).
        codes: Of the clean frames, (B, T, r h, r w) int64.
        keep: True where the cell was visible, (B, T, h, w) bool.

    Raises:
        ValueError: codes on another grid than the logits.
    """
    if codes.shape != logits.shape[:-1]:
        raise ValueError(
            f"codes {tuple(codes.shape)} do not fit the predictions {tuple(logits.shape[:-1])}; the tokenizer's stride "
            "times codes_per_cell must be the cell of the trunk"
        )
    return _mean_cross_entropy(logits.flatten(0, -2), masked_codes(codes, keep).flatten())


def masked_codes(codes: Tensor, keep: Tensor) -> Tensor:
    """Codes (B, T, r h, r w) behind hidden cells, -100 where the cell was visible; `keep` (B, T, h, w) bool."""
    times = codes.shape[-1] // keep.shape[-1]
    visible = keep.repeat_interleave(times, -1).repeat_interleave(times, -2)
    return codes.masked_fill(visible, -100)


def matching_loss(logits: Tensor, same: Tensor | None = None) -> Tensor:
    """Softmax over one right text and O - 1 wrong ones; the right one stands first.

    Args:
        logits: Matching logits, (B, O).
        same: True where a wrong text equals the right one and must not count as wrong, (B, O) bool.
    """
    scaled = logits.float() / MATCHING_TEMPERATURE
    if same is not None:
        scaled = torch.cat([scaled[:, :1], scaled[:, 1:].masked_fill(same[:, 1:], -torch.inf)], 1)
    return F.cross_entropy(scaled, scaled.new_zeros(len(scaled), dtype=torch.long))


def contrastive_loss(similarity: Tensor, same: Tensor | None = None) -> Tensor:
    """Mean of both directions of the cross-entropy of similarities; pairs stand on the diagonal.

    Args:
        similarity: Clips (rows) and texts, (B, B).
        same: True where two rows have the same text, which must not count as wrong, (B, B) bool.
    """
    scores = similarity.float()
    if same is not None:
        scores = scores.masked_fill(same & ~torch.eye(len(same), dtype=torch.bool, device=same.device), -torch.inf)
    target = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(scores, target) + F.cross_entropy(scores.mT, target)) / 2


def retrieval_loss(logits: Tensor, same: Tensor | None = None) -> Tensor:
    """Sum of both directions of the cross-entropy over all (B, B) matching logits; see `contrastive_loss`."""
    return 2 * contrastive_loss(logits.float() / MATCHING_TEMPERATURE, same)


def negative_texts(batch: int, generator: torch.Generator, most: int = 4) -> Tensor:
    """Texts to match against each video: its own, then up to most - 1 others without repetition.

    Returns:
        Rows of the batch, (B, O) int64 with O = min(B, most); column 0 is 0..B-1.
    """
    order = torch.rand(batch, batch, generator=generator).fill_diagonal_(2.0)
    return order.topk(min(batch, most), dim=1).indices


def same_texts(input_ids: Tensor, texts: Tensor) -> Tensor:
    """Whether each of the texts (B, O) is word for word the row's own, from unmasked ids (B, X); (B, O) bool."""
    return (input_ids[texts] == input_ids[:, None]).all(-1)


def _mean_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    count = (target != -100).sum().clamp(min=1)
    return F.cross_entropy(logits.float(), target, ignore_index=-100, reduction="sum") / count
