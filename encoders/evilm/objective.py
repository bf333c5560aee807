"""One pre-training step: hide, encode once, fuse once for words and codes and once per text for matching.

The targets come from outside and from clean frames, so nothing here can leak them.
Source: VIOLETv2 (arXiv:2209.01540): unit weights, features of the masked input serve all objectives.
Dims: B batch, O texts per video, T frames, h w cells, X text tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from mm.encoders.evilm.loss import (
    contrastive_loss,
    masked_code_loss,
    masked_codes,
    masked_word_loss,
    matching_loss,
    same_texts,
)
from mm.encoders.evilm.model import EViLM


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of the objectives in the sum."""

    words: float = 1.0
    """Masked words (MLM)."""
    codes: float = 1.0
    """Masked codes (MVM)."""
    matching: float = 1.0
    """Video-text matching (VTM)."""
    contrast: float = 1.0
    """Contrast of unimodal features (VTC), where the model has the heads."""


@dataclass(frozen=True, kw_only=True)
class PretrainingBatch:
    """Clips, texts and targets of one step."""

    frames: Tensor
    """Clean values in [0, 1], (B, T, 3, H, W)."""
    keep: Tensor
    """True where a cell is visible, (B, T, h, w) bool."""
    codes: Tensor
    """Codes of the clean frames, (B, T, r h, r w) int64."""
    input_ids: Tensor
    """Unmasked words, (B, X) int64."""
    masked_ids: Tensor
    """Words after masking, (B, X) int64."""
    labels: Tensor
    """Words that were masked, -100 elsewhere, (B, X) int64."""
    attention_mask: Tensor
    """True where a word is real, (B, X) bool."""
    texts: Tensor
    """Rows of the texts that each clip is matched with, its own first, (B, O) int64."""


class Step(NamedTuple):
    """What one pre-training step gives."""

    losses: dict[str, Tensor]
    """Every objective, unweighted, and their weighted sum as `total`."""
    scores: dict[str, Tensor]
    """Shares that are right: `code_top1`, `code_top5` (hidden codes), `word_top1` (masked words), `matching_top1`."""


def pretraining_losses(model: EViLM, batch: PretrainingBatch, weights: LossWeights | None = None) -> dict[str, Tensor]:
    """Every objective, unweighted, and their weighted sum as `total`; see `pretraining_step`."""
    return pretraining_step(model, batch, weights).losses


def pretraining_step(model: EViLM, batch: PretrainingBatch, weights: LossWeights | None = None) -> Step:
    """Losses and scores of one batch.

    Raises:
        ValueError: the model has no code head, or the codes lie on another grid.
    """
    weights = weights or LossWeights()
    if model.codes is None:
        raise ValueError("this model predicts no codes (codebook_size=0); pre-training needs that head")
    video = model.encode_video(batch.frames, batch.keep)
    text = model.encode_text(batch.masked_ids, batch.attention_mask)
    rows = torch.arange(len(batch.texts), device=batch.texts.device)[:, None].expand_as(batch.texts)
    fused = model.fuse(video.rows(rows.flatten()), text.rows(batch.texts.flatten()))
    matching = rearrange(model.matching(fused.text[:, 0]), "(b o) 1 -> b o", b=len(rows))
    own = slice(None, None, batch.texts.shape[1])  # column 0 of every row is the clip's own text
    words, codes = model.word_logits(fused.text[own]), model.codes(fused.cells[own])
    losses = {
        "words": masked_word_loss(words, batch.labels),
        "codes": masked_code_loss(codes, batch.codes, batch.keep),
        "matching": matching_loss(matching, same_texts(batch.input_ids, batch.texts)),
    }
    if model.contrast is not None:
        same = same_texts(batch.input_ids, all_pairs(len(batch.texts), batch.texts.device))
        losses["contrast"] = contrastive_loss(model.contrast(video.embedding, text.embedding), same)
    scale = {field.name: getattr(weights, field.name) for field in fields(weights)}
    total = torch.stack([scale[name] * loss for name, loss in losses.items()]).sum()
    hidden = masked_codes(batch.codes, batch.keep)
    scores = {
        "code_top1": top_share(codes, hidden),
        "code_top5": top_share(codes, hidden, min(5, codes.shape[-1])),
        "word_top1": top_share(words, batch.labels),
        "matching_top1": (matching.detach().argmax(1) == 0).float().mean(),
    }
    return Step(losses | {"total": total}, scores)


def all_pairs(count: int, device: torch.device) -> Tensor:
    """Every row with every text of the batch, (B, B) int64."""
    return torch.arange(count, device=device).expand(count, -1)


@torch.no_grad()
def top_share(logits: Tensor, labels: Tensor, k: int = 1) -> Tensor:
    """Share of the labels (...) that are among the k best logits (..., K); -100 is ignored, 0 if all are."""
    right = (logits.topk(k, dim=-1).indices == labels[..., None]).any(-1)
    counted = labels != -100
    return (right & counted).sum() / counted.sum().clamp(min=1)
