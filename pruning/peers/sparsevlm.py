"""SparseVLM: the words of the question that concern the picture choose its tokens; some of the dropped are recycled.

Zhang et al. 2024, "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference"
(arXiv:2410.04417), first version.
Dims: B prompts, n tokens, V visual and S text tokens of one prompt, R raters, D width, K groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from mm.pruning.base import check_target
from mm.pruning.layout import Layout
from mm.pruning.llm_stage import (
    Block,
    Cut,
    LanguageStage,
    Prompt,
    Selection,
    attention_rows,
    check_depth,
    keep_best,
    picture_sizes,
)
from mm.pruning.peers.language_peer import LanguagePeer, geometric_counts, scaled_blocks
from mm.pruning.prompt import left_packed

PUBLISHED_COUNTS = {192: (300, 200, 110), 128: (303, 110, 36), 64: (66, 30, 17)}
"""Visual tokens of 576 behind the three cuts, by published budget (an average over 32 blocks)."""


@dataclass(frozen=True, kw_only=True)
class SparseVLM(LanguagePeer):
    """Three cuts, rated by the attention of chosen text tokens in the block before each.

    Deviation: the recycled tokens are part of the counts, so that a budget is what it says. Sources name blocks 2, 6
        and 15 for the cuts; their average budgets fit cuts in front of blocks 2, 6 and 16.
    """

    target_tokens: int = 64
    """Visual tokens per picture behind the last cut, recycled ones included, unless `counts` says otherwise."""
    counts: tuple[int, ...] = ()
    """Tokens behind each cut (see `PUBLISHED_COUNTS`); empty: every cut keeps the same share, down to the target."""
    blocks: tuple[int, ...] = (2, 6, 16)
    """First blocks behind the cuts in a language model of 32 blocks; scaled to other depths."""
    recycle: bool = True
    """Group the best 30 % of the dropped tokens and pass on one sum per group."""
    positions: Literal["keep", "reindex"] = "reindex"
    """Position ids behind a cut."""

    def __post_init__(self) -> None:
        check_target(self.target_tokens)
        if not self.blocks or list(self.blocks) != sorted(set(self.blocks)) or self.blocks[0] < 1:
            raise ValueError(f"blocks must rise and start at 1 or later, got {self.blocks}")
        if self.counts and (len(self.counts) != len(self.blocks) or min(self.counts) < 1):
            raise ValueError(f"counts must list one positive number per cut ({len(self.blocks)}), got {self.counts}")

    def language_stage(self, layout: Layout) -> LanguageStage:
        return _SparseStage(self)


class _SparseStage(LanguageStage):
    def __init__(self, options: SparseVLM) -> None:
        self.options = options
        self.positions = options.positions

    def cuts(self, depth: int) -> Sequence[Cut]:
        blocks = scaled_blocks(self.options.blocks, depth)
        return check_depth([Cut(block - 1, block, number) for number, block in enumerate(blocks)], depth, "SparseVLM")

    def begin(self, prompt: Prompt, embedded: Tensor) -> Prompt:
        return replace(prompt, raters=text_raters(embedded, prompt))

    def select(self, cut: Cut, block: Block, prompt: Prompt, first: Prompt) -> Selection:
        assert prompt.raters is not None
        rows, real = left_packed(prompt.raters)
        attention = attention_rows(block, rows, prompt) * real[..., None]
        scores = attention.sum(dim=1) / real.sum(dim=1).clamp(min=1)[:, None]
        sizes = picture_sizes(first).tolist()
        wanted = torch.tensor([[self._count(size, cut.number) for size in row] for row in sizes], device=scores.device)
        now = picture_sizes(prompt)
        wanted = torch.minimum(wanted, now)
        if not self.options.recycle:
            return Selection(keep_best(scores, prompt, wanted))
        return recycled(block.hidden, scores, prompt, wanted, now)

    def _count(self, size: int, number: int) -> int:
        if self.options.counts:
            return self.options.counts[number]
        return geometric_counts(size, self.options.target_tokens, len(self.options.blocks))[number]


def text_raters(embedded: Tensor, prompt: Prompt) -> Tensor:
    """Text tokens that concern the pictures more than the average text token does: (B, n) bool.

    relevance_t = mean over visual tokens v of softmax_t(h_v . h_t) on the input embeddings; raters lie above the mean.
    Deviation: only text behind the first picture is considered, earlier text cannot attend to it.

    Args:
        embedded: Input embeddings, (B, n, D).
        prompt: Where the pictures are.
    """
    embedded = embedded.float()
    candidates = prompt.text & (prompt.visual.cumsum(dim=1) > 0)
    logits = embedded @ embedded.transpose(1, 2)  # (B, n, n): rows are visual tokens, columns text
    share = logits.masked_fill(~candidates[:, None], -torch.inf).softmax(dim=-1)
    share = share.nan_to_num(0.0)  # a prompt without text behind its pictures
    visual = prompt.visual.float()
    relevance = (share * visual[..., None]).sum(dim=1) / visual.sum(dim=1).clamp(min=1)[:, None]
    mean = relevance.sum(dim=1) / candidates.sum(dim=1).clamp(min=1)
    raters = candidates & (relevance > mean[:, None])
    # all equally relevant: every candidate rates
    return torch.where(raters.any(dim=1, keepdim=True), raters, candidates)


def group_count(dropped: int) -> tuple[int, int]:
    """Tokens worth recycling among the dropped ones, and groups that they form: int(0.3 n) + 1, int(that / 10) + 1."""
    worthy = min(dropped, int(0.3 * dropped) + 1)
    return worthy, min(worthy, worthy // 10 + 1)


def recycled(hidden: Tensor, scores: Tensor, prompt: Prompt, wanted: Tensor, now: Tensor) -> Selection:
    """Keep the best tokens of every picture and sum groups of the next best ones.

    Args:
        hidden: What the groups are formed by, (B, n, D).
        scores: (B, n) float32.
        prompt: Where the pictures are.
        wanted: Tokens behind the cut per picture, groups included, (B, pictures).
        now: Tokens in front of it, (B, pictures).
    """
    groups = torch.zeros_like(wanted)
    worthy = torch.zeros_like(wanted)
    for row, (goals, sizes) in enumerate(zip(wanted.tolist(), now.tolist(), strict=True)):
        for picture, (goal, size) in enumerate(zip(goals, sizes, strict=True)):
            if goal < size:
                parts = min(group_count(size - goal)[1], goal - 1)  # at least one token stays as it is
                groups[row, picture] = parts
                worthy[row, picture] = group_count(size - goal + parts)[0] if parts else 0
    keep = keep_best(scores, prompt, wanted - groups)
    home = torch.full_like(prompt.picture, -1)
    pool = keep_best(scores, prompt, wanted - groups + worthy) & ~keep
    for row in range(len(scores)):
        for picture in range(prompt.pictures):
            parts = int(groups[row, picture])
            if not parts:
                continue
            columns = (pool[row] & (prompt.picture[row] == picture)).nonzero()[:, 0]
            group = density_peaks(hidden[row, columns].float(), parts)
            for number in range(parts):
                members = columns[group == number]
                home[row, members] = members[0]
                keep[row, members[0]] = True
    return Selection(keep, home)


def density_peaks(points: Tensor, groups: int, neighbours: int = 5) -> Tensor:
    """Cluster by density peaks: centres are dense points far from any denser one; others join the nearest centre.

    Args:
        points: (m, D) float32.
        groups: Clusters, at most m.
        neighbours: Points that measure the density of a place.

    Returns:
        Cluster of every point, (m,) int64; no cluster is empty.
    """
    distance = torch.cdist(points, points) / points.shape[1] ** 0.5
    nearest = distance.topk(min(neighbours, len(points)), largest=False).values
    density = (-nearest.square().mean(dim=1)).exp()
    # strictly ordered, so that equal points do not hide one another
    order = density.sort(descending=True, stable=True).indices
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    denser = rank[None, :] < rank[:, None]
    gap = distance.masked_fill(~denser, torch.inf).amin(dim=1)
    gap = torch.where(gap.isinf(), distance.max(), gap)
    centres = (density * gap).sort(descending=True, stable=True).indices[:groups]
    group = distance[:, centres].argmin(dim=1)
    group[centres] = torch.arange(groups, device=group.device)
    return group
