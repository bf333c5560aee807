"""LLaVA-PruMerge: outliers of the class token's attention stay and absorb their nearest neighbours.

Shang et al. 2024, "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models" (arXiv:2403.15388).
Dims: n tokens of one picture, T kept, D width, W = H d width of all heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from mm.pruning.base import check_target
from mm.pruning.layout import Layout
from mm.pruning.peers.whole_encoder import Choice, Seen, WholeEncoderPruner, top


@dataclass(frozen=True, kw_only=True)
class PruMerge(WholeEncoderPruner):
    """Keep attention outliers, add to each the weighted sum of its nearest tokens, and append one sum of the rest.

    Attention is that of the block behind the features, read as a single head of full width.
    Deviation: nearest tokens are looked for among all others; a token never absorbs itself.
    """

    target_tokens: int | None = None  # type: ignore[assignment]
    """Tokens that reach the language model, the sum of the rest included; None: as many as there are outliers."""
    neighbours: int = 32
    """Tokens that each kept one absorbs."""
    plus: bool = False
    """PruMerge+: evenly spaced tokens join the outliers, as many as there are (with a target: half of it)."""

    needs_next_block = True

    def __post_init__(self) -> None:
        if self.target_tokens is not None:
            check_target(self.target_tokens)
        check_target(self.neighbours, "neighbours")

    @property
    def adaptive(self) -> bool:
        return self.target_tokens is None

    def view_targets(self, views: int, layout: Layout) -> list[int]:
        # without a target any number will do: outliers decide
        return [1] * views if self.target_tokens is None else super().view_targets(views, layout)

    def covers_all(self, size: int, target: int) -> bool:
        return self.target_tokens is not None and size <= target

    def choose(self, seen: Seen, target: int) -> Choice:
        query, key = _full_width(seen)
        scores = (query @ key.T * key.shape[1] ** -0.5).softmax(dim=0)[seen.prefix :]
        scores, keys = seen.per_token(scores), seen.per_token(key[seen.prefix :])
        index = self._kept(scores, target)
        tokens = absorb(seen.tokens, keys, scores, index, self.neighbours)
        rest = torch.ones_like(scores).index_fill(0, index, 0.0) * scores
        summary = (rest[:, None] * seen.tokens.float()).sum(dim=0, keepdim=True).to(tokens.dtype)
        return Choice(torch.cat([tokens, summary]), torch.cat([index, index.new_tensor([-1])]), scores)

    def _kept(self, scores: Tensor, target: int) -> Tensor:
        """Numbers of the tokens that stay, ascending."""
        count = outliers(scores) if self.target_tokens is None else max(target - 1, 1)
        if not self.plus:
            return top(scores, count)
        best = top(scores, count if self.target_tokens is None else -(-count // 2))
        spaced = len(best) if self.target_tokens is None else count - len(best)
        free = torch.ones_like(scores).index_fill(0, best, 0.0).nonzero()[:, 0]
        spaced = min(spaced, len(free))
        places = (torch.arange(spaced, device=free.device) * 2 + 1) * len(free) // (2 * max(spaced, 1))
        return torch.cat([best, free[places]]).sort().values


def _full_width(seen: Seen) -> tuple[Tensor, Tensor]:
    """Guide query (W,) and keys (P + n u, W) with all heads side by side, float32."""
    heads = seen.next_heads or seen.heads
    query, key = (rearrange(x[0].float(), "h n d -> n (h d)") for x in (heads.query, heads.key))
    return (query.mean(dim=0) if seen.cls is None else query[0]), key


def outliers(scores: Tensor) -> int:
    """How many scores lie above the third quartile plus 1.5 interquartile ranges; at least 1."""
    low, high = torch.quantile(scores, torch.tensor([0.25, 0.75], device=scores.device))
    return max(1, int((scores > high + 1.5 * (high - low)).sum()))


def absorb(tokens: Tensor, keys: Tensor, scores: Tensor, index: Tensor, neighbours: int) -> Tensor:
    """Each kept token plus the attention-weighted sum of its nearest tokens by the cosine of their keys: (T, D)."""
    unit = F.normalize(keys, dim=-1)
    similarity = unit[index] @ unit.T
    similarity[torch.arange(len(index), device=index.device), index] = -torch.inf
    nearest = similarity.topk(min(neighbours, len(tokens) - 1), dim=1).indices  # (T, k)
    extra = (scores[nearest][..., None] * tokens[nearest].float()).sum(dim=1)
    return (tokens[index].float() + extra).to(tokens.dtype)
