"""Local contrastive similarity of volumes and texts, streamed: the B x J x S x L attention is never held at once.

Sentences or words of a text attend to the regions of a volume; how well each token is explained by what it attended to
gives one similarity per (volume, text) pair. A block of pairs is formed, used and dropped; the backward pass forms it
again. Dims: B volumes, S regions, J texts, L tokens (padded), E channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mm.kernels.dispatch import Candidate, Dispatcher, situation

BLOCK_BYTES = {"cpu": 4 << 20, "cuda": 32 << 20}
"""Size of one block of attention: what fits the cache, or keeps a GPU busy."""
TINY = 1e-8
"""Smallest product of norms in a cosine, as in torch.nn.functional.cosine_similarity."""

DISPATCH = Dispatcher(
    "local_contrastive_similarity",
    Candidate("blocked", "a block of pairs at a time, formed again in the backward pass"),
    Candidate("reference", "plain torch, all pairs at once"),
)


def local_contrastive_similarity(
    regions: Tensor,
    tokens: Tensor,
    keep: Tensor | None = None,
    *,
    region_temperature: float = 4.0,
    token_temperature: float = 5.0,
    similarity_temperature: float = 10.0,
    pre_scale: float = 1.0,
    normalize_before_attention: bool = True,
    reduction: str = "sum",
    impl: str = "auto",
) -> Tensor:
    """Similarity of every volume with every text from their regions and tokens.

    With unit regions r_s and tokens u_l: beta_sl = softmax_l(pre_scale r_s u_l), alpha_ls = softmax_s(t1 beta_sl),
    c_l = sum_s alpha_ls r_s, similarity = t3 log sum_l exp(t2 cos(c_l, u_l)).

    Args:
        regions: (B, S, E), not normalised.
        tokens: (J, L, E), not normalised.
        keep: True where a token is real, (J, L) bool; None when all are. Every text needs at least one.
        region_temperature: t1, multiplies beta in the softmax over regions.
        token_temperature: t2, multiplies the cosines.
        similarity_temperature: t3, multiplies the logarithm.
        pre_scale: Multiplier inside the softmax over tokens. The published 1.0 leaves beta close to 1 / L for long
            texts, and the attention over regions almost uniform.
        normalize_before_attention: Use unit vectors for r and u (the published form); the cosine is unaffected.
        reduction: "sum" over tokens as above, or "mean", which subtracts t3 log(number of tokens).
        impl: "auto", "blocked" or "reference".

    Returns:
        (B, J), rows are volumes, in float32 at least; differentiable in `regions` and `tokens`.

    Example:
        >>> local_contrastive_similarity(torch.randn(2, 8, 16), torch.randn(3, 5, 16)).shape
        torch.Size([2, 3])

    Source: VELVET-Med (Zhang et al. 2025, arXiv:2508.12108), hierarchical contrastive learning; formula of its
        published code, in the style of GLoRIA (Huang et al. 2021).
    """
    if regions.ndim != 3 or tokens.ndim != 3 or regions.shape[2] != tokens.shape[2]:
        raise ValueError(
            f"regions must be (B, S, E) and tokens (J, L, E), got {tuple(regions.shape)} and {tuple(tokens.shape)}"
        )
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}")
    if keep is None:
        keep = tokens.new_ones(tokens.shape[:2], dtype=torch.bool)
    if keep.shape != tokens.shape[:2] or keep.dtype != torch.bool:
        raise ValueError(
            f"keep must be boolean (J, L) = {tuple(tokens.shape[:2])}, got {keep.dtype} {tuple(keep.shape)}"
        )
    wide = torch.promote_types(regions.dtype, torch.float32)
    r, u = regions.to(wide), tokens.to(wide)
    if normalize_before_attention:
        r, u = F.normalize(r, dim=-1), F.normalize(u, dim=-1)
    scales = [pre_scale, region_temperature, token_temperature]
    grad = torch.is_grad_enabled() and (r.requires_grad or u.requires_grad)
    chosen = DISPATCH.choose(situation(r, length=r.shape[1], needs_grad=grad), impl)
    run = _reference if chosen == "reference" else local_similarity_op
    log_sum = run(r, u, keep, scales)
    if reduction == "mean":
        log_sum = log_sum - keep.sum(1).to(wide).log()
    return similarity_temperature * log_sum


def local_attention(
    regions: Tensor,
    tokens: Tensor,
    *,
    region_temperature: float = 4.0,
    pre_scale: float = 1.0,
    normalize_before_attention: bool = True,
) -> Tensor:
    """Which regions each token of one matching text attends to: regions (S, E), tokens (L, E) -> (L, S), rows sum to 1.

    Arguments as in `local_contrastive_similarity`. With the published settings the contrast is small: stretch it for
    display.
    """
    if normalize_before_attention:
        regions, tokens = F.normalize(regions, dim=-1), F.normalize(tokens, dim=-1)
    beta = (pre_scale * regions @ tokens.T).softmax(-1)
    return (region_temperature * beta).softmax(0).T


def _reference(r: Tensor, u: Tensor, keep: Tensor, scales: list[float]) -> Tensor:
    """log sum_l exp(t2 cos) for all pairs at once, (B, J); O(B J S L) memory."""
    pre, t1, t2 = scales
    scores = pre * torch.einsum("bse,jle->bjsl", r, u)
    beta = scores.masked_fill(~keep[None, :, None, :], -torch.inf).softmax(-1)
    alpha = (t1 * beta).softmax(2)
    context = torch.einsum("bjsl,bse->bjle", alpha, r)
    cosine = F.cosine_similarity(context, u[None], dim=-1, eps=TINY)
    return (t2 * cosine).masked_fill(~keep[None], -torch.inf).logsumexp(-1)


@torch.library.custom_op("mm::local_similarity", mutates_args=())
def local_similarity_op(r: Tensor, u: Tensor, keep: Tensor, scales: list[float]) -> Tensor:
    """As `_reference`, block by block; scales = (pre_scale, t1, t2)."""
    out = r.new_empty(len(r), len(u))
    for rows, text, size in _blocks(r, u, keep):
        block = _Block.of(r[rows], u[text, :size], keep[text, :size], scales)
        out[rows, text] = (scales[2] * block.cosine + block.closed).logsumexp(-1)
    return out


@local_similarity_op.register_fake
def _(r, u, keep, scales):  # type: ignore[no-untyped-def]
    return r.new_empty(r.shape[0], u.shape[0])


@torch.library.custom_op("mm::local_similarity_backward", mutates_args=())
def local_similarity_backward_op(
    grad: Tensor, r: Tensor, u: Tensor, keep: Tensor, scales: list[float]
) -> tuple[Tensor, Tensor]:
    """Gradients of r and u; every block is formed again."""
    d_r, d_u = torch.zeros_like(r), torch.zeros_like(u)
    for rows, text, size in _blocks(r, u, keep):
        block = _Block.of(r[rows], u[text, :size], keep[text, :size], scales)
        new_r, new_u = block.backward(grad[rows, text], scales)
        d_r[rows] += new_r
        d_u[text, :size] += new_u
    return d_r, d_u


@local_similarity_backward_op.register_fake
def _(grad, r, u, keep, scales):  # type: ignore[no-untyped-def]
    return torch.empty_like(r), torch.empty_like(u)


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    *tensors, ctx.scales = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    d_r, d_u = local_similarity_backward_op(grad, *ctx.saved_tensors, ctx.scales)
    return d_r, d_u, None, None


local_similarity_op.register_autograd(_backward, setup_context=_setup)


def _blocks(r: Tensor, u: Tensor, keep: Tensor) -> Iterator[tuple[slice, int, int]]:
    """Runs of volumes against one text at a time, and how many of its tokens must be looked at.

    On the CPU that is the last kept token; elsewhere finding it would stop the device, and the padded length stays.
    """
    length = u.shape[1]
    if r.device.type == "cpu":
        sizes = [int(row.nonzero().max()) + 1 if row.any() else length for row in keep]
    else:
        sizes = [length] * len(u)
    room = BLOCK_BYTES.get(r.device.type, BLOCK_BYTES["cuda"])
    for text, size in enumerate(sizes):
        step = max(1, room // (r.shape[1] * size * r.element_size()))
        for first in range(0, len(r), step):
            yield slice(first, first + step), text, size


@dataclass
class _Block:
    """What one text (L tokens) and b volumes need for their similarity and its gradient."""

    r: Tensor
    u: Tensor
    closed: Tensor
    """0 for real tokens, -inf for padding, (L)."""
    beta: Tensor
    """(b, S, L)."""
    alpha: Tensor
    """(b, S, L), summing to one over S."""
    context: Tensor
    """(b, L, E)."""
    norms: Tensor
    """|c_l| |u_l|, (b, L)."""
    cosine: Tensor

    @classmethod
    def of(cls, r: Tensor, u: Tensor, keep: Tensor, scales: list[float]) -> _Block:
        """r (b, S, E), u (L, E), keep (L)."""
        closed = torch.zeros_like(u[:, 0]).masked_fill_(~keep, -torch.inf)
        beta = torch.baddbmm(closed.expand(len(r), 1, -1), r, u.T.expand(len(r), -1, -1), alpha=scales[0]).softmax(-1)
        alpha = (beta * scales[1]).softmax(1)
        context = alpha.mT @ r
        norms = (context.norm(dim=-1) * u.norm(dim=-1)).clamp_min(TINY)
        return cls(r, u, closed, beta, alpha, context, norms, (context * u).sum(-1) / norms)

    def backward(self, grad: Tensor, scales: list[float]) -> tuple[Tensor, Tensor]:
        """grad (b) of the log-sum -> gradients of r (b, S, E) and u (L, E)."""
        pre, t1, t2 = scales
        d_cosine = grad[:, None] * t2 * (t2 * self.cosine + self.closed).softmax(-1)  # (b, L)
        along = (d_cosine / self.norms)[..., None]
        turned = (d_cosine * self.cosine)[..., None]
        d_context = along * self.u - turned * self.context / _square(self.context)
        d_u = (along * self.context - turned * self.u / _square(self.u)).sum(0)
        d_r = self.alpha @ d_context
        change = self.r @ d_context.mT  # of alpha, then of beta, then of the scores; (b, S, L)
        change = torch._softmax_backward_data(change, self.alpha, 1, change.dtype).mul_(t1)
        change = torch._softmax_backward_data(change, self.beta, 2, change.dtype).mul_(pre)
        d_r += change @ self.u
        d_u += torch.einsum("bsl,bse->le", change, self.r)
        return d_r, d_u


def _square(x: Tensor) -> Tensor:
    return x.square().sum(-1, keepdim=True).clamp_min(TINY**2)
