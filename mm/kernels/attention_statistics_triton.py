"""Attention statistics on a GPU: entropies inside a flash-attention pass, column sums from its log-sum-exp.

The column kernel keeps one block of keys and walks over the queries: p_ij = exp(z_ij - lse_i) is recomputed and summed
in registers, so nothing is added atomically and the result is the same in every run.
Dims: B batch, H query heads, G key heads, N queries, M keys, D channels per head, R chosen queries.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from mm.kernels.dispatch import triton_is_interpreted

_LOG2E = math.log2(math.e)


@triton.jit
def _attention_kernel(
    q, k, v, out, lse, spread, real,
    qb, qh, qn, kb, kh, kn, vb, vh, vn, ob, oh, on,
    H, GROUP, N, M, scale,
    D: tl.constexpr, DP: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, TRIPS: tl.constexpr,
    CAUSAL: tl.constexpr, PADDED: tl.constexpr, ENTROPY: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    """Flash attention of one block of queries, in base two; also log-sum-exp and entropy of every query."""
    first = tl.program_id(0) * QUERIES
    b = (tl.program_id(1) // H).to(tl.int64)
    h = (tl.program_id(1) % H).to(tl.int64)
    rows = first + tl.arange(0, QUERIES)
    lane = tl.arange(0, DP)
    column = tl.arange(0, KEYS)
    query_at = q + b * qb + h * qh + rows[:, None].to(tl.int64) * qn + lane[None, :]
    query = tl.load(query_at, mask=(rows[:, None] < N) & (lane[None, :] < D), other=0.0)
    key_at = k + b * kb + (h // GROUP) * kh + lane[:, None]
    value_at = v + b * vb + (h // GROUP) * vh + lane[None, :]
    top = tl.full((QUERIES,), -1e30, tl.float32)  # finite: a row without keys must not give inf - inf
    total = tl.zeros((QUERIES,), tl.float32)
    moment = tl.zeros((QUERIES,), tl.float32)  # sum of p (z - top)
    acc = tl.zeros((QUERIES, DP), tl.float32)
    end = M
    if CAUSAL:
        end = tl.minimum(M, first + QUERIES)
    # The interpreter needs a trip count known in advance.
    for trip in range(TRIPS if TRIPS > 0 else tl.cdiv(end, KEYS)):
        keys = trip * KEYS + column
        inside = keys < M
        key = tl.load(key_at + keys[None, :].to(tl.int64) * kn, mask=inside[None, :] & (lane[:, None] < D), other=0.0)
        z = tl.dot(query, key, input_precision="ieee") * scale
        seen = inside[None, :]
        if PADDED:
            seen = seen & (tl.load(real + b * M + keys, mask=inside, other=0) != 0)[None, :]
        if CAUSAL:
            seen = seen & (keys[None, :] <= rows[:, None])
        z = tl.where(seen, z, -1e30)
        higher = tl.maximum(top, tl.max(z, 1))
        p = tl.where(seen, tl.exp2(z - higher[:, None]), 0.0)
        shrink = tl.exp2(top - higher)
        if ENTROPY:
            moment = shrink * (moment + (top - higher) * total) + tl.sum(p * (z - higher[:, None]), 1)
        total = total * shrink + tl.sum(p, 1)
        top = higher
        if OUT:
            value = tl.load(
                value_at + keys[:, None].to(tl.int64) * vn, mask=inside[:, None] & (lane[None, :] < D), other=0.0
            )
            acc = tl.dot(p.to(value.dtype), value, acc * shrink[:, None], input_precision="ieee")
    filled = total > 0
    safe = tl.where(filled, total, 1.0)
    at = tl.program_id(1).to(tl.int64) * N + rows
    log_sum = tl.log2(safe)
    tl.store(lse + at, tl.where(filled, (top + log_sum) / 1.4426950408889634, float("-inf")), mask=rows < N)
    if ENTROPY:
        bits = tl.where(filled, log_sum - moment / safe, 0.0)
        tl.store(spread + at, bits / 1.4426950408889634, mask=rows < N)
    if OUT:
        out_at = out + b * ob + h * oh + rows[:, None].to(tl.int64) * on + lane[None, :]
        result = acc / safe[:, None]
        tl.store(out_at, result.to(out.dtype.element_ty), mask=(rows[:, None] < N) & (lane[None, :] < D))


@triton.jit
def _column_kernel(
    q, k, lse, weights, real, sums,
    qb, qh, qn, kb, kh, kn,
    H, GROUP, N, M, scale,
    D: tl.constexpr, DP: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, TRIPS: tl.constexpr,
    CAUSAL: tl.constexpr, PADDED: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Sums over all queries of the probabilities of one block of keys."""
    b = (tl.program_id(1) // H).to(tl.int64)
    h = (tl.program_id(1) % H).to(tl.int64)
    keys = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    lane = tl.arange(0, DP)
    row = tl.arange(0, QUERIES)
    key_at = k + b * kb + (h // GROUP) * kh + keys[:, None].to(tl.int64) * kn + lane[None, :]
    key = tl.load(key_at, mask=(keys[:, None] < M) & (lane[None, :] < D), other=0.0)
    query_at = q + b * qb + h * qh + lane[:, None]
    lse_at = lse + tl.program_id(1).to(tl.int64) * N
    acc = tl.zeros((KEYS, QUERIES), tl.float32)
    # The interpreter needs bounds known in advance; a GPU skips the queries before the first key.
    for trip in range(
        tl.program_id(0) * KEYS // QUERIES if CAUSAL and TRIPS == 0 else 0,
        TRIPS if TRIPS > 0 else tl.cdiv(N, QUERIES),
    ):
        rows = trip * QUERIES + row
        inside = rows < N
        query = tl.load(
            query_at + rows[None, :].to(tl.int64) * qn, mask=inside[None, :] & (lane[:, None] < D), other=0.0
        )
        z = tl.dot(key, query, input_precision="ieee") * scale
        offset = tl.load(lse_at + rows, mask=inside, other=float("inf")) * 1.4426950408889634
        offset = tl.where(offset == float("-inf"), float("inf"), offset)  # a query without keys gives nothing
        p = tl.exp2(z - offset[None, :])
        if WEIGHTED:
            p *= tl.load(weights + b * N + rows, mask=inside, other=0.0)[None, :]
        if CAUSAL:
            p = tl.where(keys[:, None] <= rows[None, :], p, 0.0)
        acc += p
    result = tl.sum(acc, 1)
    if PADDED:
        result = tl.where(tl.load(real + b * M + keys, mask=keys < M, other=0) != 0, result, 0.0)
    tl.store(sums + tl.program_id(1).to(tl.int64) * M + keys, result, mask=keys < M)


@triton.jit
def _row_kernel(
    q, k, z, qb, qh, qn, kb, kh, kn, H, GROUP, R, M, scale,
    D: tl.constexpr, DP: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Scaled scores of one query over one block of keys."""
    r = tl.program_id(1) % R
    b = (tl.program_id(1) // R // H).to(tl.int64)
    h = ((tl.program_id(1) // R) % H).to(tl.int64)
    keys = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    lane = tl.arange(0, DP)
    query = tl.load(q + b * qb + h * qh + r * qn + lane, mask=lane < D, other=0.0).to(tl.float32)
    key_at = k + b * kb + (h // GROUP) * kh + keys[:, None].to(tl.int64) * kn + lane[None, :]
    key = tl.load(key_at, mask=(keys[:, None] < M) & (lane[None, :] < D), other=0.0).to(tl.float32)
    tl.store(z + tl.program_id(1).to(tl.int64) * M + keys, tl.sum(key * query[None, :], 1) * scale, mask=keys < M)


def statistics_triton(q, k, v, mask, weights, causal, scale, entropy, reduce) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `mm.kernels.attention_statistics.attention_statistics`; `mask` is None or padding, bool (B or 1, 1, 1, M)."""
    q, k, v = (t if t is None or t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    batch, keys = q.shape[0], k.shape[2]
    real = None if mask is None else mask[:, 0, 0].expand(batch, keys).contiguous()
    out, lse, spread = _attention(q, k, v, real, causal, scale, entropy)
    empty = q.new_empty(0, dtype=torch.float32)
    sums = empty if weights is None else _columns(q, k, lse, weights.contiguous(), real, causal, scale)
    if weights is not None and reduce:
        sums = sums.mean(1)
    if spread is not None and reduce:
        spread = spread.mean(1)
    return out, sums, empty.clone() if spread is None else spread, lse if entropy else empty.clone()


def _attention(q, k, v, real, causal, scale, entropy) -> tuple[Tensor, Tensor, Tensor | None]:
    """Output (empty without `v`), log-sum-exp (B, H, N) and entropy (B, H, N)."""
    batch, heads, count, width = q.shape
    if v is not None and _fused_fits(q, k, v, real, causal, entropy):
        if _cudnn_fits(q, k, v, causal):
            out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
                q, k, v, None, True, 0.0, causal, False, scale=scale
            )
            return out, lse.reshape(batch, heads, count).contiguous(), None
        out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)
        return out, lse, None
    keys = k.shape[2]
    lse = q.new_empty((batch, heads, count), dtype=torch.float32)
    spread = torch.empty_like(lse) if entropy else None
    out = q.new_empty(0) if v is None else q.new_empty((batch, count, heads, width)).transpose(1, 2)
    value = k if v is None else v
    tile = _tile(width)
    strides = out.stride()[:3] if v is not None else (0, 0, 0)
    _attention_kernel[(triton.cdiv(count, tile["QUERIES"]), batch * heads)](
        q, k, value, out, lse, spread, real, *q.stride()[:3], *k.stride()[:3], *value.stride()[:3], *strides,
        heads, heads // k.shape[1], count, keys, scale * _LOG2E,
        D=width, DP=max(16, triton.next_power_of_2(width)), TRIPS=_trips(keys, tile["KEYS"]),
        CAUSAL=causal, PADDED=real is not None, ENTROPY=entropy, OUT=v is not None, **tile,
    )  # fmt: skip
    return out, lse, spread


def _fused_fits(q: Tensor, k: Tensor, v: Tensor, real: Tensor | None, causal: bool, entropy: bool) -> bool:
    """Whether torch's own attention kernels give the output and the log-sum-exp that are needed."""
    return (
        q.is_cuda
        and real is None
        and not entropy
        and q.dtype in (torch.float16, torch.bfloat16)
        and q.shape[3] == v.shape[3]
        and q.shape[3] % 8 == 0
        and q.shape[1] == k.shape[1]
        and (not causal or q.shape[2] == k.shape[2])  # it aligns causality at the last key
    )


def _cudnn_fits(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> bool:
    """Whether cuDNN's attention, the faster one on Hopper, takes this call and the user has not switched it off."""
    if torch.cuda.get_device_capability(q.device) < (9, 0) or not torch.backends.cuda.cudnn_sdp_enabled():
        return False
    call = torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, causal, False)
    return torch.backends.cuda.can_use_cudnn_attention(call, debug=False)


def _columns(q, k, lse, weights, real, causal, scale) -> Tensor:
    """Column sums of every head, (B, H, M)."""
    batch, heads, count, width = q.shape
    keys = k.shape[2]
    sums = q.new_empty((batch, heads, keys), dtype=torch.float32)
    tile = _column_tile(width)
    _column_kernel[(triton.cdiv(keys, tile["KEYS"]), batch * heads)](
        q, k, lse, weights, real, sums, *q.stride()[:3], *k.stride()[:3],
        heads, heads // k.shape[1], count, keys, scale * _LOG2E,
        D=width, DP=max(16, triton.next_power_of_2(width)), TRIPS=_trips(count, tile["QUERIES"]),
        CAUSAL=causal, PADDED=real is not None, WEIGHTED=True, **tile,
    )  # fmt: skip
    return sums


def row_scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Scaled scores (B, H, R, M) of the chosen queries q (B, H, R, D); keys are read where they lie."""
    q, k = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k))
    batch, heads, rows, width = q.shape
    keys = k.shape[2]
    z = q.new_empty((batch, heads, rows, keys), dtype=torch.float32)
    block = 16 if triton_is_interpreted() else 128
    _row_kernel[(triton.cdiv(keys, block), batch * heads * rows)](
        q, k, z, *q.stride()[:3], *k.stride()[:3], heads, heads // k.shape[1], rows, keys, scale,
        D=width, DP=max(16, triton.next_power_of_2(width)), KEYS=block, num_warps=4,
    )  # fmt: skip
    return z


def _trips(length: int, block: int) -> int:
    """Loop count for the interpreter, 0 (count at run time, no recompilation) on a GPU."""
    return triton.cdiv(length, block) if triton_is_interpreted() else 0


def _tile(width: int) -> dict[str, int]:
    """Block sizes of the attention kernel: no spilled registers, at most 99 KB of shared memory (sm_80 to sm_90)."""
    if triton_is_interpreted():
        return {"QUERIES": 16, "KEYS": 16}
    if width <= 128:
        return {"QUERIES": 128, "KEYS": 64, "num_warps": 8, "num_stages": 3 if width <= 64 else 2}
    return {"QUERIES": 64, "KEYS": 32, "num_warps": 8, "num_stages": 2}


def _column_tile(width: int) -> dict[str, int]:
    """Block sizes of the column kernel, within the same limits."""
    if triton_is_interpreted():
        return {"QUERIES": 16, "KEYS": 16}
    if width <= 128:
        return {"QUERIES": 32, "KEYS": 128, "num_warps": 4, "num_stages": 3}
    return {"QUERIES": 64, "KEYS": 64, "num_warps": 8, "num_stages": 2}
