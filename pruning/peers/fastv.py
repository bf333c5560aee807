"""FastV: half of the visual tokens are not looked at behind the second block.

Chen et al. 2024, "An Image is Worth 1/2 Tokens After Layer 2" (arXiv:2403.06764).
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
)
from mm.pruning.peers.language_peer import LanguagePeer


@dataclass(frozen=True, kw_only=True)
class FastV(LanguagePeer):
    """One cut in front of block `layer`, by the last token's attention in the block before it.

    The published reference masks the dropped tokens; here they really leave, with their positions kept, which computes
    the same.
    """

    target_tokens: int = 128
    """Visual tokens per picture behind the cut. Published numbers are averages over blocks instead."""
    layer: int = 2
    """First block (from 0) without the dropped tokens (K)."""
    positions: Literal["keep", "reindex"] = "keep"
    """Position ids behind the cut."""

    def __post_init__(self) -> None:
        check_target(self.target_tokens)
        check_target(self.layer, "layer")

    def language_stage(self, layout: Layout) -> LanguageStage:
        return _FastVStage(self)


class _FastVStage(LanguageStage):
    def __init__(self, options: FastV) -> None:
        self.options = options
        self.positions = options.positions

    def cuts(self, depth: int) -> Sequence[Cut]:
        return check_depth([Cut(self.options.layer - 1, self.options.layer)], depth, "FastV")

    def select(self, cut: Cut, block: Block, prompt: Prompt, first: Prompt) -> Selection:
        scores = attention_rows(block, prompt.question[:, None], prompt)[:, 0]
        counts = torch.full((len(scores), prompt.pictures), self.options.target_tokens, device=scores.device)
        return Selection(keep_best(scores, prompt, counts))
