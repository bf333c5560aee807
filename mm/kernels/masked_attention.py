"""Attention that knows its mask: causal, packed, shared prefix with facets, visual prefix, or any boolean matrix.

The rectangles and triangles of a structured mask (`mm.kernels.masks`) go to flash attention and are merged by
log-sum-exp, so no N x M matrix is built; only for short sequences on CUDA, where one masked call measured faster, the
mask is written out, once for all heads. Without structure this is torch's scaled_dot_product_attention.
Dims: B batch, H query heads, K key/value heads (K divides H), N queries, M keys, E channels.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mm.kernels.attention_parts import attention_parts, encode
from mm.kernels.dispatch import Candidate, Dispatcher, Situation, situation
from mm.kernels.masks import Causal, Facets, Packed, Structure, VisualPrefix, dense_mask


def _no_flash(where: Situation) -> str | None:
    """Why the parts of a mask cannot go to flash attention."""
    if where.device == "cpu":
        return None
    if where.device != "cuda":
        return f"torch has no flash attention for {where.device} tensors"
    if where.dtype not in (torch.float16, torch.bfloat16):
        return f"flash attention on CUDA needs float16 or bfloat16, found {where.dtype}"
    if where.capability is not None and where.capability < (8, 0):
        return f"flash attention needs compute capability 8.0, found {where.capability}"
    return f"head size {where.head_dim} is above 256" if where.head_dim > 256 else None


def _short(where: Situation) -> str | None:
    """Why `auto` passes over the parts: gathering them costs more than masking a few pairs (H200: 2.8 to 1.7 ms)."""
    fits = where.device == "cuda" and where.length <= 512
    return f"with {where.length} tokens one masked call is faster on CUDA" if fits else None


def _no_flex(where: Situation) -> str | None:
    if sys.platform == "win32":
        return "FlexAttention does not run on Windows"
    if where.device == "cpu":
        return "FlexAttention has no backward pass on the CPU" if where.needs_grad else None
    return "FlexAttention was found to fail below 128 queries" if where.length < 128 else None


def _slow_flex(where: Situation) -> str | None:
    """Why `auto` passes over FlexAttention."""
    return "it compiles for seconds at every new shape; ask for it by name"


STRUCTURED = Dispatcher(
    "attention",
    Candidate("blocked", "flash attention on each part of the mask, merged by log-sum-exp", _no_flash, _short),
    Candidate("flex", "FlexAttention with a block mask", _no_flex, _slow_flex),
    Candidate("sdpa", "scaled_dot_product_attention with a boolean matrix"),
    Candidate("reference", "plain torch, all scores at once"),
)
PLAIN = Dispatcher(
    "attention",
    Candidate("sdpa", "scaled_dot_product_attention"),
    Candidate("reference", "plain torch, all scores at once"),
)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: str | Structure | Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """softmax(scale q k^T + bias, where mask) v, by the fastest path that fits the mask.

    Args:
        q: (B, H, N, E), any floating dtype, contiguous or not.
        k, v: (B, K, M, E); K divides H, and head h reads key head h // (H / K) without copies.
        mask: None (all pairs), "causal" (the last query is aligned with the last key), a structure (`Causal`, `Packed`,
            `Facets`, `VisualPrefix`), or a boolean tensor that broadcasts to (B, H, N, M), True = attend.
        bias: Added to the scaled scores, broadcasts to (B, H, N, M); differentiable. It is a matrix itself, so a
            structured mask beside it is written out, too.
        scale: Default E ** -0.5.
        impl: "auto", "blocked" (parts of a structured mask), "flex", "sdpa" or "reference".

    Returns:
        (B, H, N, E), dtype of `q`. Queries that may see no key get zeros, and zero gradients.

    Raises:
        ValueError: shapes or lengths that do not fit, an unknown mask name, or an `impl` that cannot run here.

    Example:
        >>> q = torch.randn(2, 4, 9, 16)
        >>> attention(q, q[:, :2], q[:, :2], mask=Facets(prefix=5, facets=(2, 2))).shape
        torch.Size([2, 4, 9, 16])

    Source: FLAME (Cao et al. 2024, arXiv:2411.11927), facet-decoupled mask; merge by log-sum-exp as in flash decoding.
    """
    _check(q, k, v)
    structure = _structure(mask, q.shape[2], k.shape[2])
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    where = situation(q, length=q.shape[2], needs_grad=_needs_grad(q, k, v, bias))
    if isinstance(structure, Tensor) or structure is None or bias is not None:
        chosen = PLAIN.choose(where, impl)
        matrix = _matrix(structure, q, k)
        return (
            _reference(q, k, v, matrix, bias, scale) if chosen == "reference" else _sdpa(q, k, v, matrix, bias, scale)
        )
    if isinstance(structure, Causal) and q.shape[2] == k.shape[2] and impl in ("auto", "sdpa"):
        PLAIN.choose(where, impl)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=_grouped(q, k))
    chosen = STRUCTURED.choose(where, impl)
    parts = structure.parts(len(q), q.shape[2], k.shape[2])  # also checks that the lengths fit
    if chosen == "blocked":
        return attention_parts(q, k, v, encode(parts), scale)[0]
    if chosen == "flex":
        return _flex(q, k, v, structure, scale)
    run = _reference if chosen == "reference" else _sdpa
    return run(q, k, v, _matrix(structure, q, k), None, scale)


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    fits = q.ndim == k.ndim == 4 and k.shape[:3] == v.shape[:3] and len(q) == len(k) and q.shape[-1] == k.shape[-1]
    if not fits or q.shape[1] % k.shape[1]:
        raise ValueError(
            "q must be (B, H, N, E) and k, v (B, K, M, E) with K dividing H, "
            f"got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )


def _structure(mask: str | Structure | Tensor | None, num_queries: int, num_keys: int) -> Structure | Tensor | None:
    """The mask with names resolved and trivial cases removed."""
    if isinstance(mask, Tensor):
        if mask.dtype != torch.bool:
            raise ValueError(f"a mask tensor must be boolean (True = attend), got {mask.dtype}; add numbers as `bias`")
        return mask
    if mask is None or isinstance(mask, Packed | Facets | VisualPrefix):
        return mask
    if mask == "causal" or isinstance(mask, Causal):
        return None if num_queries == 1 and num_keys else Causal()
    raise ValueError(f"unknown mask {mask!r}; give None, 'causal', Packed, Facets, VisualPrefix or a boolean tensor")


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def _grouped(q: Tensor, k: Tensor) -> bool:
    return q.shape[1] != k.shape[1]


def _matrix(mask: Structure | Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    if mask is None or isinstance(mask, Tensor):
        return mask
    return dense_mask(mask, len(q), q.shape[2], k.shape[2], q.device)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, scale: float) -> Tensor:
    """torch's attention; rows without any key are opened for it and emptied afterwards, on every backend alike."""
    if mask is None:
        added = None if bias is None else bias.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=added, scale=scale, enable_gqa=_grouped(q, k))
    some = mask.any(-1, keepdim=True)
    allowed = mask | ~some
    added = allowed if bias is None else bias.to(q.dtype).masked_fill(~allowed, -torch.inf)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=added, scale=scale, enable_gqa=_grouped(q, k))
    return out.masked_fill(~some, 0.0)


def _reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, scale: float) -> Tensor:
    """All scores at once, softmax in float32 at least."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    scores = (scale * (q @ k.mT)).to(torch.promote_types(q.dtype, torch.float32))
    scores = scores if bias is None else scores + bias
    if mask is None:
        return scores.softmax(-1).to(q.dtype) @ v
    some = mask.any(-1, keepdim=True)
    p = scores.masked_fill(~(mask | ~some), -torch.inf).softmax(-1).masked_fill(~some, 0.0)
    return p.to(q.dtype) @ v


def _flex(q: Tensor, k: Tensor, v: Tensor, mask: Structure, scale: float) -> Tensor:
    """FlexAttention; compiled on CUDA, its plain (slow, forward-only) form on the CPU."""
    blocks = _block_mask(mask, len(q), q.shape[2], k.shape[2], q.device)
    run = _compiled_flex() if q.is_cuda else _plain_flex()
    return run(q, k, v, block_mask=blocks, scale=scale, enable_gqa=_grouped(q, k))


@lru_cache(maxsize=32)
def _block_mask(mask: Structure, batch: int, num_queries: int, num_keys: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    rule = mask.rule(num_queries, num_keys, device)
    return create_block_mask(rule, batch, None, num_queries, num_keys, device=device)


@lru_cache(maxsize=1)
def _compiled_flex() -> Any:
    return torch.compile(_plain_flex(), dynamic=False)


def _plain_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention
