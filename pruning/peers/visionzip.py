"""VisionZip: dominant tokens by attention, and contextual tokens that sum up the rest.

Yang et al. 2024, "VisionZip: Longer is Better but Not Necessary in Vision Language Models" (arXiv:2412.04467).
Dims: n tokens of one picture, K dominant, C contextual, D width, d head channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mm.pruning.base import check_target
from mm.pruning.peers.whole_encoder import Choice, Seen, WholeEncoderPruner, top
from mm.pruning.scores import guide_row, received_attention


@dataclass(frozen=True, kw_only=True)
class VisionZip(WholeEncoderPruner):
    """Keep the tokens that the class token looks at, and average the others around evenly spaced anchors.

    The class token itself goes to the language model and counts as a dominant token. Published splits: 54 + 10, 108 +
    20, 162 + 30. Encoders without a class token rate by the attention that a token receives.
    """

    target_tokens: int = 64
    """Tokens that reach the language model, all kinds together."""
    contextual_share: float = 10 / 64
    """Share of them that are contextual, 0..1."""

    def __post_init__(self) -> None:
        check_target(self.target_tokens)
        if not 0 <= self.contextual_share <= 1:
            raise ValueError(f"contextual_share must lie in 0..1, got {self.contextual_share}")

    def choose(self, seen: Seen, target: int) -> Choice:
        scores = seen.per_token(_rating(seen))
        contextual = min(round(target * self.contextual_share), target - 1)
        with_cls = int(seen.cls is not None)
        dominant = top(scores, target - contextual - with_cls)
        keys = seen.per_token(seen.heads.key[0, :, seen.prefix :].float().mean(dim=0))
        anchors, summed = summed_anchors(seen.tokens, keys, dominant, contextual)
        parts, index = [seen.tokens[dominant], summed], [dominant, anchors]
        if seen.cls is not None:
            parts, index = [seen.cls[None], *parts], [dominant.new_tensor([-1]), *index]
        return Choice(torch.cat(parts), torch.cat(index), scores)


def _rating(seen: Seen) -> Tensor:
    """Attention of the class token over the patches, or received attention without one, (n u,)."""
    if seen.cls is None:
        return received_attention(seen.heads)[0, seen.prefix :]
    return guide_row(seen.heads.query, seen.heads.key, seen.heads.scale, "cls", None)[0, seen.prefix :]


def summed_anchors(tokens: Tensor, keys: Tensor, dominant: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Contextual tokens: evenly spaced anchors among the rest, each plus the mean of the tokens nearest to it.

    Args:
        tokens: (n, D).
        keys: One key per token, (n, d).
        dominant: Tokens that are taken already, (K,).
        count: Anchors (C).

    Returns:
        Numbers of the anchors (C,), and the contextual tokens (C, D).
    """
    rest = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
    rest[dominant] = False
    left = rest.nonzero()[:, 0]
    if count == 0:
        return left[:0], tokens[:0]
    step = max(1, len(left) // count)
    places = torch.arange(0, step * count, step, device=left.device)
    anchors = left[places]
    others = torch.ones(len(left), dtype=torch.bool, device=left.device)
    others[places] = False
    others = left[others]
    unit = F.normalize(keys, dim=-1)
    home = (unit[others] @ unit[anchors].T).argmax(dim=1)  # (rest - C,)
    sums = torch.zeros_like(tokens[anchors], dtype=torch.float32).index_add(0, home, tokens[others].float())
    sizes = torch.zeros(count, device=tokens.device).index_add(0, home, torch.ones_like(home, dtype=torch.float32))
    mean = (sums / sizes.clamp(min=1)[:, None]).to(tokens.dtype)
    return anchors, tokens[anchors] + mean
