"""How much information flows through each visual token of one encoder layer.

FlowCut (Tong et al. 2025, arXiv:2505.19536) rates a token by three things that one layer shows without any training:
how much the guide token attends to it, how similar its value vector is to the guide's, and how large that value vector
is. The guide is the class token, or the mean of all tokens where an encoder has none:

    score_j = (attention_j + semantic_j) * density_j

Only one row of the attention matrix is needed, so the layer itself may run in any fused attention.
Dims: B pictures, H heads, P prefix tokens (class token first), N patches, d head channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

Criterion = Literal["attention", "semantic", "density"]
CRITERIA: tuple[Criterion, ...] = ("attention", "semantic", "density")


@dataclass(frozen=True)
class Heads:
    """Queries, keys and values of one encoder layer, after rotation if the layer rotates."""

    query: Tensor
    """(B, H, P + N, d)."""
    key: Tensor
    """(B, H, P + N, d)."""
    value: Tensor
    """(B, H, P + N, d)."""
    scale: float
    """Factor on the attention logits, as the layer itself uses it."""


@dataclass(frozen=True)
class ScoreConfig:
    """Which criteria count, and how they are computed."""

    guide: Literal["cls", "mean"] = "cls"
    """Token that rates the others: the class token, or the mean of all tokens."""
    criteria: tuple[Criterion, ...] = CRITERIA
    """Criteria in use; without attention and semantic the score is the density alone."""
    semantic_scale: Literal["none", "sqrt"] = "none"
    """"none": unscaled products, class token inside the softmax; "sqrt": over patches, divided by sqrt(d)."""
    density: Literal["head_mean", "full"] = "head_mean"
    """L1 norm of the mean over heads, or of the whole value vector."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.criteria) - set(CRITERIA))
        if unknown or not self.criteria:
            raise ValueError(f"criteria must be some of {', '.join(CRITERIA)}, got {self.criteria or 'none'}")


@dataclass(frozen=True)
class Flow:
    """What one layer says about its patches; float32."""

    score: Tensor
    """Instant score of every patch, (B, N); 0 at padding."""
    attention: Tensor
    """Guide's attention over the patches, (B, N), sums to 1 per row; 0 at padding."""


def information_flow(heads: Heads, prefix: int, config: ScoreConfig, keep: Tensor | None = None) -> Flow:
    """Rate the patches of one layer; everything is computed in float32.

    Args:
        heads: Of the layer.
        prefix: Tokens before the patches (P); the first is the class token if `config.guide` is "cls".
        config: Criteria.
        keep: True where a patch is real, (B, N) bool; None means everywhere.

    Source: paper section 3, equations of the relation, semantic and density scores.
    Deviation: the paper scales the semantic product by sqrt(D) and leaves the class token out; the published results
        come from code that does neither, which is the default here (`semantic_scale="none"`).
    """
    visible = None if keep is None else torch.cat([keep.new_ones(len(keep), prefix), keep], dim=1)
    attention = guide_row(heads.query, heads.key, heads.scale, config.guide, visible)  # (B, P + N)
    attention = _share(attention[:, prefix:])
    score = torch.zeros_like(attention)
    value = heads.value.float()  # once: a copy in half precision costs as much as the sums below
    if "attention" in config.criteria:
        score = score + attention
    if "semantic" in config.criteria:
        score = score + semantic_similarity(value, prefix, config, visible)
    if "density" in config.criteria:
        density = value_density(value[:, :, prefix:], config.density)
        score = score * density if len(config.criteria) > 1 else density
    return Flow(score if keep is None else score.masked_fill(~keep, 0.0), attention)


def guide_row(query: Tensor, key: Tensor, scale: float, guide: str, visible: Tensor | None) -> Tensor:
    """Attention of the guide over all tokens, mean over heads: (B, P + N) float32.

    Args:
        query: (B, H, P + N, d).
        key: (B, H, P + N, d).
        scale: Factor on the logits.
        guide: "cls" takes token 0, "mean" the mean over the visible tokens.
        visible: (B, P + N) bool or None.
    """
    if guide == "cls":
        rater = query[:, :, 0].float()
    elif visible is None:
        rater = query.float().mean(dim=2)
    else:
        weight = rearrange(visible, "b n -> b 1 n 1").float()
        rater = (query.float() * weight).sum(dim=2) / weight.sum(dim=2)
    logits = torch.einsum("bhd,bhnd->bhn", rater, key.float()) * scale
    if visible is not None:
        logits = logits.masked_fill(~visible[:, None], -torch.inf)
    return logits.softmax(dim=-1).mean(dim=1)


def semantic_similarity(value: Tensor, prefix: int, config: ScoreConfig, visible: Tensor | None) -> Tensor:
    """Share of each patch in the value-space similarity to the guide, (B, N) float32."""
    if config.semantic_scale == "none":
        return _share(guide_row(value, value, 1.0, config.guide, visible)[:, prefix:])
    scale = value.shape[-1] ** -0.5
    if config.guide == "cls":
        hidden = torch.ones(len(value), value.shape[2], dtype=torch.bool, device=value.device)
        hidden[:, :prefix] = False
        visible = hidden if visible is None else hidden & visible
    return _share(guide_row(value, value, scale, config.guide, visible)[:, prefix:])


def value_density(value: Tensor, kind: str = "head_mean") -> Tensor:
    """L1 norm of the value vectors, (B, H, N, d) -> (B, N) float32.

    Heads may cancel one another in the default: the mean over heads comes before the norm.
    """
    value = value.float()
    return value.mean(dim=1).abs().sum(dim=-1) if kind == "head_mean" else value.abs().sum(dim=(1, 3))


def entropy_ratio(attention: Tensor, count: Tensor | None = None, epsilon: float = 0.0) -> Tensor:
    """Entropy of a distribution over patches, relative to the largest possible: (B, N) -> (B,), 0..1.

    Args:
        attention: Sums to 1 per row; 0 at padding.
        count: Real patches per row, (B,); None means N.
        epsilon: Added inside the logarithm (one published variant uses 1e-7); 0 treats 0 log 0 as 0.
    """
    if epsilon:
        entropy = -(attention * (attention + epsilon).log()).sum(dim=1)
    else:
        entropy = torch.special.entr(attention).sum(dim=1)
    size = torch.full_like(entropy, attention.shape[1]) if count is None else count.to(entropy.dtype)
    return entropy / size.clamp(min=2).log()  # one patch has no entropy; avoid 0 / 0


def _share(row: Tensor) -> Tensor:
    """Divide by the sum over patches: what is left when the prefix tokens are taken out."""
    return row / row.sum(dim=1, keepdim=True)


def received_attention(heads: Heads, chunk: int = 512) -> Tensor:
    """Mean attention that each token receives from all tokens, over heads: (B, P + N) float32, sums to 1.

    Rows are computed in chunks; no N x N matrix is kept.
    """
    batch, _, length, _ = heads.query.shape
    total = torch.zeros(batch, length, device=heads.query.device)
    for start in range(0, length, chunk):
        rows = heads.query[:, :, start : start + chunk].float()
        logits = torch.einsum("bhqd,bhnd->bhqn", rows, heads.key.float()) * heads.scale
        total += logits.softmax(dim=-1).mean(dim=1).sum(dim=1)
    return total / length
