"""PyramidDrop: fewer visual tokens stage by stage, deeper and deeper in the language model.

Xing et al. 2024, "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction"
(arXiv:2410.17247).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

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


@dataclass(frozen=True, kw_only=True)
class PyramidDrop(LanguagePeer):
    """Three cuts in front of blocks 8, 16 and 24 of 32, rated by the norm and projections of the block that comes next.

    Every cut keeps the same share; a target of one eighth gives the published 1/2, 1/4, 1/8.
    Deviation: the guide is the last token of the instruction in training too (published: the mean over all positions
        before the answer).
    """

    target_tokens: int = 72
    """Visual tokens per picture behind the last cut. Published numbers are averages over blocks instead."""
    blocks: tuple[int, ...] = (8, 16, 24)
    """First blocks behind the cuts in a language model of 32 blocks; scaled to other depths."""
    positions: Literal["keep", "reindex"] = "reindex"
    """Position ids behind a cut."""

    def __post_init__(self) -> None:
        check_target(self.target_tokens)
        if not self.blocks or list(self.blocks) != sorted(set(self.blocks)) or self.blocks[0] < 1:
            raise ValueError(f"blocks must rise and start at 1 or later, got {self.blocks}")

    def language_stage(self, layout: Layout) -> LanguageStage:
        return _PyramidStage(self)


class _PyramidStage(LanguageStage):
    def __init__(self, options: PyramidDrop) -> None:
        self.options = options
        self.positions = options.positions

    def cuts(self, depth: int) -> Sequence[Cut]:
        blocks = scaled_blocks(self.options.blocks, depth)
        return check_depth([Cut(block, block, number) for number, block in enumerate(blocks)], depth, "PyramidDrop")

    def select(self, cut: Cut, block: Block, prompt: Prompt, first: Prompt) -> Selection:
        scores = attention_rows(block, prompt.question[:, None], prompt)[:, 0]
        cuts = len(self.options.blocks)
        sizes = picture_sizes(first).tolist()
        target, number = self.options.target_tokens, cut.number
        counts = [[geometric_counts(size, target, cuts)[number] for size in row] for row in sizes]
        return Selection(keep_best(scores, prompt, torch.tensor(counts, device=scores.device)))
