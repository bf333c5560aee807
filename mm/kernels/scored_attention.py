"""Attention that also tells how it attended: chosen rows, column sums and entropy, without the N x N matrix.

p = softmax(scale q k^T + mask). Rows are p_r for a few queries, columns are sum_i w_i p_ij ("attention received"), the
entropy of query i is -sum_j p_ij ln p_ij (nats). Statistics are float32 (float64 for float64 inputs) and carry no
gradient; the output does.
Dims: B batch, H query heads, G key heads, N queries, M keys, D channels per head, R chosen queries.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mm.kernels.attention_statistics import DISPATCH, attention_rows, attention_statistics
from mm.kernels.dispatch import Situation, situation

NAMED_ROWS = ("cls", "last", "mean")


class Scores(NamedTuple):
    """What was asked for; everything else is None. The head dim H is there with `head_reduce="none"` only."""

    rows: Tensor | None
    """Softmax rows, (B, [H,] M) for a named row, (B, [H,] R, M) for an index tensor."""
    columns: Tensor | None
    """Weighted sums over the queries, (B, [H,] M)."""
    entropy: Tensor | None
    """Entropy of each query's row in nats, (B, [H,] N)."""
    lse: Tensor | None
    """Log-sum-exp of each query's scores, (B, H, N); comes with `entropy`, never reduced over heads."""


def attention_with_scores(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    rows: str | Tensor | None = None,
    columns: bool | Tensor = False,
    entropy: bool = False,
    mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    head_reduce: str = "mean",
    impl: str = "auto",
) -> tuple[Tensor, Scores]:
    """Scaled dot-product attention plus statistics of its weights.

    Args:
        q: Queries, (B, H, N, D); any strides, last dim contiguous.
        k: Keys, (B, G, M, D); G divides H, query head h reads key head h // (H / G).
        v: Values, (B, G, M, Dv).
        rows: Queries whose softmax row is wanted: int64 indices (R) or (B, R), or "cls" (the first), "last" (the last
            real one), "mean" (the mean of the real queries, which sees every real key).
        columns: True sums the rows of all real queries; a tensor (N) or (B, N) gives the weight of each query.
        entropy: Also return each row's entropy and log-sum-exp.
        mask: Bool, True = attend: (B, M) for padded keys, or 4-D broadcastable to (B, H, N, M); a float 4-D mask is
            added to the scaled scores. With a (B, M) mask and N = M, the real queries are the real keys. A query
            without any key gives zeros.
        is_causal: Query i sees keys 0..i (aligned at the first key, as in torch); may be combined with `mask`.
        scale: Factor of the scores; 1 / sqrt(D) by default.
        head_reduce: "mean" over heads or "none".
        impl: How the statistics are computed: "auto", "triton", "blocked" or "reference".

    Returns:
        Output (B, H, N, Dv) in the dtype of `q`, and `Scores`.

    Raises:
        ValueError: shapes that do not fit, an unknown option, or an implementation that cannot run here.

    Example:
        >>> q = k = v = torch.eye(2)[None, None]
        >>> out, scores = attention_with_scores(q, k, v, rows="cls", columns=True)
        >>> bool((scores.columns.sum() - 2).abs() < 1e-6)  # two queries spend one unit of attention each
        True
    """
    _check(q, k, v, head_reduce)
    mask, real = _as_4d(mask, q, k)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    grad = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))
    weights = _column_weights(columns, real, q)
    reduce = head_reduce == "mean"
    where = _situation(q, k, v, mask)

    wants_all_rows = entropy or weights is not None
    chosen = DISPATCH.choose(where, impl) if wants_all_rows or rows is not None else "none"
    bare_q, bare_k = q.detach(), k.detach()

    picked = None
    if rows is not None:  # before the attention, which then finds the keys in the cache
        queries, row_mask = _chosen_queries(rows, bare_q, k.shape[2], mask, real, is_causal)
        picked = attention_rows(queries, bare_k, row_mask, scale, reduce, chosen)
        picked = picked.squeeze(-2) if isinstance(rows, str) else picked
    sums = spread = lse = None
    if wants_all_rows:  # one pass gives the output, too, unless it needs a backward
        value = None if grad else v.detach()
        out, sums, spread, lse = attention_statistics(
            bare_q, bare_k, value, mask, weights, is_causal, scale, entropy, reduce, chosen
        )
    if grad or not wants_all_rows:
        out = _plain_attention(q, k, v, mask, is_causal, scale)
    return out, Scores(
        picked, sums if weights is not None else None, spread if entropy else None, lse if entropy else None
    )


def _check(q: Tensor, k: Tensor, v: Tensor, head_reduce: str) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not q.ndim == k.ndim == v.ndim == 4:
        raise ValueError(f"attention_with_scores needs q (B, H, N, D), k (B, G, M, D), v (B, G, M, Dv), got {shapes}")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or k.shape[:3] != v.shape[:3] or q.shape[1] % k.shape[1]:
        raise ValueError(f"batch, head dim and keys must agree and key heads divide query heads, got {shapes}")
    if head_reduce not in ("mean", "none"):
        raise ValueError(f"unknown head_reduce {head_reduce!r}; choose 'mean' or 'none'")


def _as_4d(mask: Tensor | None, q: Tensor, k: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The mask in four dims, and which queries are real (B, N) where that is known."""
    (batch, heads, count), keys = q.shape[:3], k.shape[2]
    if mask is None:
        return None, None
    if mask.ndim == 2 and mask.dtype == torch.bool and mask.shape == (batch, keys):
        return mask[:, None, None], mask if count == keys else None
    full = (batch, heads, count, keys)
    if mask.ndim == 4 and all(size in (1, whole) for size, whole in zip(mask.shape, full, strict=True)):
        return mask, None
    raise ValueError(
        f"mask must be bool ({batch}, {keys}) or broadcast to {full} in four dims, got {mask.dtype} {tuple(mask.shape)}"
    )


def _column_weights(columns: bool | Tensor, real: Tensor | None, q: Tensor) -> Tensor | None:
    """Weight of each query in the column sums, (B, N) float32, or None when no sums are wanted."""
    if columns is False:
        return None
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    batch, count = q.shape[0], q.shape[2]
    if columns is True:
        return q.new_ones((batch, count), dtype=dtype) if real is None else real.to(dtype)
    if columns.shape not in ((count,), (batch, count)):
        raise ValueError(
            f"columns must be True or weights ({count},) or ({batch}, {count}), got {tuple(columns.shape)}"
        )
    return columns.detach().to(dtype).expand(batch, count)


def _situation(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Situation:
    """Only padding masks are known to the Triton kernels; other masks are told by `length` 0."""
    simple = mask is None or (mask.dtype == torch.bool and mask.shape[1:3] == (1, 1))
    return situation(q, length=q.shape[2] if simple and v.shape[3] == k.shape[3] else 0, needs_grad=False)


def _plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, scale: float) -> Tensor:
    """torch's attention; a mask and causality are merged because torch takes only one of the two."""
    if mask is not None and is_causal:
        allowed = q.new_ones((q.shape[2], k.shape[2]), dtype=torch.bool).tril()
        mask = mask & allowed if mask.dtype == torch.bool else mask.masked_fill(~allowed, -torch.inf)
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(q.dtype)
    causal = is_causal and mask is None
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=grouped)


def _chosen_queries(
    rows: str | Tensor, q: Tensor, keys: int, mask: Tensor | None, real: Tensor | None, is_causal: bool
) -> tuple[Tensor, Tensor | None]:
    """The chosen queries (B, H, R, D) and their mask, broadcastable to (B, H, R, M)."""
    batch, _, count, _ = q.shape
    if isinstance(rows, str) and rows == "mean":
        weights = q.new_ones((batch, count), dtype=torch.float32) if real is None else real.float()
        weights = weights / weights.sum(1, keepdim=True).clamp_min(1)
        if mask is not None and mask.shape[2] != 1:
            raise ValueError("rows='mean' needs a mask that is the same for all queries, (B, M) or (B, 1, 1, M)")
        return torch.einsum("bhnd,bn->bhd", q, weights.to(q.dtype))[:, :, None], mask
    index = _row_indices(rows, batch, count, real, q.device)  # (B, R)
    # One row for the whole batch is a view; anything else is gathered.
    if isinstance(rows, str) and (rows == "cls" or real is None):
        chosen = q[:, :, :1] if rows == "cls" else q[:, :, -1:]
    else:
        chosen = q.take_along_dim(index[:, None, :, None], 2)
    if mask is not None and mask.shape[2] != 1:
        mask = mask.expand(batch, -1, -1, -1).take_along_dim(index[:, None, :, None], 2)
    if is_causal:
        seen = torch.arange(keys, device=q.device) <= index[:, None, :, None]  # (B, 1, R, M)
        if mask is None:
            mask = seen
        else:
            mask = mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, -torch.inf)
    return chosen, mask


def _row_indices(rows: str | Tensor, batch: int, count: int, real: Tensor | None, device: torch.device) -> Tensor:
    """Indices of the chosen queries, (B, R)."""
    if isinstance(rows, Tensor):
        if (
            rows.dtype not in (torch.int64, torch.int32)
            or rows.ndim not in (1, 2)
            or rows.shape[:-1] not in ((), (batch,))
        ):
            raise ValueError(f"rows must be integers (R,) or ({batch}, R), got {rows.dtype} {tuple(rows.shape)}")
        index = rows.to(device, torch.int64).expand(batch, rows.shape[-1])
        return torch.where(index < 0, index + count, index)
    if rows not in NAMED_ROWS:
        raise ValueError(f"unknown rows {rows!r}; choose {', '.join(NAMED_ROWS)} or an index tensor")
    if rows == "cls" or real is None:
        return torch.full((batch, 1), 0 if rows == "cls" else count - 1, dtype=torch.int64, device=device)
    position = torch.arange(count, device=device)
    return torch.where(real, position, 0).amax(1, keepdim=True)  # the last real query
