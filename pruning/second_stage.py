"""FlowCut's second cut: the same information-flow score inside the language model, seen from the last prompt token.

Source: paper section 3 ("long visual sequences"). Behind block 1, every picture keeps its `target_tokens` best.
Dims: B prompts, n tokens, H heads, G key/value heads, d head channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from mm.pruning.llm_stage import Block, Cut, LanguageStage, Prompt, Selection, check_depth, keep_best, products


@dataclass(frozen=True, kw_only=True)
class FlowCutSecondStage(LanguageStage):
    """One cut behind block `layer`, scored by that block's rotated queries, keys and values."""

    target_tokens: int
    """Visual tokens to keep per picture."""
    layer: int = 1
    """Block that scores (from 0); the next one is the first without the dropped tokens."""

    positions = "reindex"

    def cuts(self, depth: int) -> Sequence[Cut]:
        return check_depth([Cut(self.layer, self.layer + 1)], depth, "FlowCut's second stage")

    def select(self, cut: Cut, block: Block, prompt: Prompt, first: Prompt) -> Selection:
        scores = question_flow(block, prompt)
        counts = torch.full((len(scores), prompt.pictures), self.target_tokens, device=scores.device)
        return Selection(keep_best(scores, prompt, counts))


def question_flow(block: Block, prompt: Prompt) -> Tensor:
    """(relation + semantic) * density of every visual token, (B, n) float32, 0 elsewhere.

    Both parts are softmaxes over one picture's tokens only, scaled by 1 / sqrt(d), mean over heads. The guide is the
    last prompt token before the answer.
    Deviation: the published code scores the span from the first picture on; here each picture has its own softmax, so
    that text between pictures is never scored and several pictures do not compete.
    """
    rows = prompt.question[:, None]
    query, key, value, scale = block.heads(rows)
    guide = value.gather(2, rows[:, None, :, None].expand(-1, value.shape[1], -1, value.shape[-1]))
    # grouped heads: every key/value head counts as often as it has queries
    relation = products(query, key, scale)[:, :, 0]  # (B, H, n)
    semantic = (guide.float() * value.float()).sum(dim=-1) * value.shape[-1] ** -0.5  # (B, G, n)
    density = value.float().mean(dim=1).abs().sum(dim=-1)
    total = torch.zeros_like(density)
    for picture in range(prompt.pictures):
        mine = rearrange(prompt.picture == picture, "b n -> b 1 n")
        share = _span_softmax(relation, mine) + _span_softmax(semantic, mine)
        total = total + share * density
    return total


def _span_softmax(logits: Tensor, span: Tensor) -> Tensor:
    """Softmax over a span, mean over heads: (B, H, n) -> (B, n); 0 outside, and where the span is empty."""
    logits = logits.masked_fill(~span, -torch.inf)
    top = logits.amax(dim=-1, keepdim=True).clamp(min=torch.finfo(logits.dtype).min)
    grown = (logits - top).exp()
    return (grown / grown.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(logits.dtype).tiny)).mean(dim=1)
