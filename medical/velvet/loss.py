"""All losses of VELVET-Med: report, sentence and word contrast, views, masked words, match, rotation, reconstruction.

Dims: B pairs, E channels, S regions, L tokens or sentences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from mm.kernels import local_contrastive_similarity
from mm.medical.velvet.config import LEVELS, Level, LocalConfig

IGNORE = -100
"""Label of places that take no part."""


@dataclass(frozen=True)
class LevelEmbeddings:
    """Vectors of one side, volume or text, in the shared spaces; a level that is missing is None."""

    report: Tensor | None = None
    """(B, E)."""
    sentence: Tensor | None = None
    """(B, L, E); regions of a volume or sentences of a text."""
    word: Tensor | None = None
    """(B, L, E); regions of a volume or words of a text."""
    sentence_keep: Tensor | None = None
    """True where a sentence is real, (B, L) bool; None: all."""
    word_keep: Tensor | None = None
    """True where a word is real, (B, L) bool; None: all."""
    grids: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    """Of a volume: shape of the region grid per local level."""

    @property
    def levels(self) -> tuple[Level, ...]:
        """Levels that are present."""
        return tuple(level for level in LEVELS if getattr(self, level) is not None)

    def __getitem__(self, rows: slice | Tensor) -> LevelEmbeddings:
        """Some of the B rows."""
        values = {name: value for name, value in self.__dict__.items() if isinstance(value, Tensor)}
        return LevelEmbeddings(**{name: value[rows] for name, value in values.items()}, grids=self.grids)


def report_similarity(volume: Tensor, text: Tensor) -> Tensor:
    """Cosine of every volume with every report, (B, E) and (J, E) -> (B, J), in float32 at least."""
    wide = torch.promote_types(volume.dtype, torch.float32)
    return F.normalize(volume.to(wide), dim=-1) @ F.normalize(text.to(wide), dim=-1).mT


def level_similarity(
    volume: LevelEmbeddings, text: LevelEmbeddings, level: Level, local: LocalConfig | None = None
) -> Tensor:
    """Similarity of every volume with every text at one level, (B, J).

    Report: cosine. Sentence and word: `mm.kernels.local_contrastive_similarity`. A text without any token at that level
    gets the lowest finite number of its column.

    Raises:
        ValueError: one side lacks the level.
    """
    ours, theirs = getattr(volume, level), getattr(text, level)
    if ours is None or theirs is None:
        raise ValueError(f"level {level!r} is missing; volume has {volume.levels}, text has {text.levels}")
    if level == "report":
        return report_similarity(ours, theirs)
    local = local or LocalConfig()
    keep: Tensor | None = getattr(text, f"{level}_keep")
    empty: Tensor | None = None
    if keep is not None:  # a text without tokens is computed on padding and struck out below
        empty = ~keep.any(1)
        keep = keep | (empty[:, None] & (torch.arange(keep.shape[1], device=keep.device) == 0))
    similarity = local_contrastive_similarity(
        ours,
        theirs,
        keep,
        region_temperature=local.region_temperature,
        token_temperature=local.token_temperature,
        similarity_temperature=local.similarity_temperature,
        pre_scale=local.pre_scale,
        normalize_before_attention=local.normalize_before_attention,
        reduction=local.reduction,
        impl=local.impl,
    )
    return similarity if empty is None else similarity.masked_fill(empty, torch.finfo(similarity.dtype).min)


def two_way_loss(
    similarity: Tensor,
    *,
    positives: Tensor | None = None,
    label_smoothing: float = 0.0,
    volume_weight: float = 0.5,
    valid: Tensor | None = None,
) -> Tensor:
    """Cross-entropy over rows and over columns: w CE(S) + (1 - w) CE(S^T).

    Args:
        similarity: Rows are volumes, columns texts, already divided by a temperature, (B, B).
        positives: True where a pair belongs together, (B, B) bool, the diagonal included; several positives share the
            target evenly. None: the diagonal.
        label_smoothing: Share of the target that is spread over all classes.
        volume_weight: Weight w of the rows.
        valid: False for pairs to leave out, (B,) bool; their columns must hold the lowest finite number.

    Returns:
        Scalar; 0 if nothing is valid.
    """
    size = len(similarity)
    target = torch.eye(size, dtype=similarity.dtype, device=similarity.device)
    if positives is not None:
        target = positives.to(similarity.dtype)
    keep = torch.ones(size, dtype=similarity.dtype, device=similarity.device)
    if valid is not None:
        keep = valid.to(similarity.dtype)
        target = target * keep[:, None] * keep
        outside = ~(valid[:, None] & valid)
        similarity = similarity.masked_fill(outside, torch.finfo(similarity.dtype).min)
    classes = keep.sum().clamp(min=1)
    total = similarity.new_zeros(())
    for scores, wanted, weight in ((similarity, target, volume_weight), (similarity.mT, target.mT, 1 - volume_weight)):
        wanted = wanted / wanted.sum(1, keepdim=True).clamp(min=1)
        wanted = (1 - label_smoothing) * wanted + label_smoothing / classes * keep
        losses = -(wanted * scores.log_softmax(1)).sum(1)
        total = total + weight * (losses * keep).sum() / classes
    return total


def report_loss(
    volume: Tensor,
    text: Tensor,
    temperature: Tensor | float,
    *,
    positives: Tensor | None = None,
    label_smoothing: float = 0.1,
    volume_weight: float = 0.5,
) -> Tensor:
    """Report level: two-way cross-entropy of cosines over a temperature, labels smoothed.

    L = 1/2 (CE(S / t) + CE(S^T / t)), S = v t^T with unit vectors.

    Args:
        volume: (B, E).
        text: (B, E).
        temperature: t, divides.
        positives, label_smoothing, volume_weight: See `two_way_loss`.
    """
    similarity = report_similarity(volume, text) / temperature
    return two_way_loss(similarity, positives=positives, label_smoothing=label_smoothing, volume_weight=volume_weight)


def hierarchical_contrastive_loss(
    volume: LevelEmbeddings,
    text: LevelEmbeddings,
    *,
    temperature: Tensor | float = 0.07,
    label_smoothing: float = 0.1,
    local: LocalConfig | None = None,
    positives: Tensor | None = None,
) -> dict[str, Tensor]:
    """Contrast of volumes and reports at every level that both have.

    Sentence and word similarities are formed block by block, so the (B, B, S, L) attention never exists at once.

    Args:
        volume: Report vectors (B, E), sentence and word regions (B, S, E).
        text: Report vectors (B, E), sentences and words (B, L, E) with their masks.
        temperature: Of the report level.
        label_smoothing: Of the report level; the others have none.
        local: Temperatures of the sentence and word level.
        positives: True where volume and text belong together, (B, B) bool; None: the diagonal. Reports with the same
            text are positives, not negatives.

    Returns:
        Level name -> scalar in float32; their sum is the published loss (all weights 1). One pair alone gives 0.

    Raises:
        ValueError: no common level, or numbers of volumes and texts differ.

    Example:
        >>> volume = LevelEmbeddings(report=torch.randn(2, 4), word=torch.randn(2, 8, 4))
        >>> text = LevelEmbeddings(report=torch.randn(2, 4), word=torch.randn(2, 5, 4))
        >>> sorted(hierarchical_contrastive_loss(volume, text))
        ['report', 'word']

    Source: VELVET-Med (arXiv:2508.12108), hierarchical contrastive learning. Deviation: a report without sentences is
        left out of the sentence level instead of failing.
    """
    levels = [level for level in volume.levels if level in text.levels]
    if not levels:
        raise ValueError(f"no common level: volume has {volume.levels or 'none'}, text has {text.levels or 'none'}")
    losses: dict[str, Tensor] = {}
    for level in levels:
        similarity = level_similarity(volume, text, level, local)
        if similarity.shape[0] != similarity.shape[1]:
            raise ValueError(
                f"volumes and texts must come in pairs, got {similarity.shape[0]} and {similarity.shape[1]}"
            )
        if level == "report":
            losses[level] = two_way_loss(similarity / temperature, positives=positives, label_smoothing=label_smoothing)
        else:
            keep = getattr(text, f"{level}_keep")
            losses[level] = two_way_loss(similarity, positives=positives, valid=None if keep is None else keep.any(1))
    return losses


def view_contrast_loss(first: Tensor, second: Tensor, temperature: float = 0.5) -> Tensor:
    """NT-Xent on two views: each embedding finds its partner among all 2 B - 1 others, the partner included.

    Args:
        first: Embeddings of one view, (B, E).
        second: Embeddings of the other, (B, E).
        temperature: Divides the cosines.

    Source: Chen et al. 2020 (arXiv:2002.05709); equals MONAI's `ContrastiveLoss`.
    """
    wide = torch.promote_types(first.dtype, torch.float32)
    both = F.normalize(torch.cat([first, second]).to(wide), dim=-1)
    scores = both @ both.mT / temperature
    scores = scores.masked_fill(torch.eye(len(both), dtype=torch.bool, device=both.device), -torch.inf)
    return F.cross_entropy(scores, torch.arange(len(both), device=both.device).roll(len(first)))


def masked_word_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy at the masked places; 0 where nothing was masked.

    Args:
        logits: (B, N, vocabulary).
        labels: Original ids at masked places, -100 elsewhere, (B, N) int.
    """
    count = (labels != IGNORE).sum().clamp(min=1)
    flat = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORE, reduction="sum") / count


def match_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of "belongs together" (class 1) and "does not" (class 0), (M, 2) and (M,) int; -100 is left out."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    count = (labels != IGNORE).sum().clamp(min=1)
    return F.cross_entropy(logits.to(wide), labels, ignore_index=IGNORE, reduction="sum") / count


def rotation_loss(logits: Tensor, turns: Tensor) -> Tensor:
    """Cross-entropy of the number of quarter turns, (M, 4) and (M,) int."""
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), turns)


def reconstruction_loss(reconstruction: Tensor, target: Tensor, kind: str = "l1") -> Tensor:
    """Mean over all voxels of l1 (published), mse or smooth_l1; surplus voxels of the decoder are cut off.

    Args:
        reconstruction: (M, channels, H', W', D'), each edge at least that of the target.
        target: The turned, uncorrupted views, (M, channels, H, W, D).
        kind: Which distance.
    """
    losses = {"l1": F.l1_loss, "mse": F.mse_loss, "smooth_l1": F.smooth_l1_loss}
    if kind not in losses:
        raise ValueError(f"reconstruction is one of {', '.join(losses)}, got {kind!r}")
    height, width, depth = target.shape[2:]
    inside = reconstruction[:, :, :height, :width, :depth]
    wide = torch.promote_types(inside.dtype, torch.float32)
    return losses[kind](inside.to(wide), target.to(wide))
