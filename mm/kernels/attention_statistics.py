"""Statistics of softmax attention as custom operators: all-query sums and entropies, and a few rows.

On CPU one block of queries attends to all keys at once; its probabilities stay in the cache, give the column sums, the
entropies and, in the same pass, the output, and are then overwritten by the next block.
Dims: B batch, H query heads, G key heads, N queries, M keys, D channels per head, R chosen queries.
"""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mm.kernels.dispatch import Candidate, Dispatcher, Situation, needs_triton

_BLOCK = 160_000  # probabilities per block: with their scores 1.3 MB in float32, about the second-level cache


def _triton_obstacle(where: Situation) -> str | None:
    if where.length == 0:
        return "it knows key padding and causality, not general masks, and needs values as wide as keys"
    if where.device == "cuda" and where.dtype == torch.float32:
        return "float32 products without tensor cores spill registers"
    return f"head dim {where.head_dim} is above 256" if where.head_dim > 256 else None


DISPATCH = Dispatcher(
    "attention_with_scores",
    Candidate("triton", "statistics inside the attention kernel", lambda s: needs_triton(s) or _triton_obstacle(s)),
    Candidate("blocked", "blocks of queries whose probabilities stay in the cache"),
    Candidate("reference", "the whole matrix", unsuited=lambda _: "it holds N x M probabilities"),
)


@torch.library.custom_op("mm::attention_statistics", mutates_args=())
def attention_statistics(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    mask: Tensor | None,
    weights: Tensor | None,
    causal: bool,
    scale: float,
    entropy: bool,
    reduce: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output (B, H, N, Dv), column sums (B, [H,] M), entropy (B, [H,] N), log-sum-exp (B, H, N).

    What was not asked for (`v` None, `weights` None, `entropy` False) comes back empty. `mask` is None or 4-D,
    broadcastable to (B, H, N, M), bool (True = attend) or float (added).
    """
    with torch.autocast(q.device.type, enabled=False):
        if impl == "triton":
            from mm.kernels.attention_statistics_triton import statistics_triton

            return statistics_triton(q, k, v, mask, weights, causal, scale, entropy, reduce)
        if impl == "reference":
            return _reference(q, k, v, mask, weights, causal, scale, entropy, reduce)
        return _blocked(q, k, v, mask, weights, causal, scale, entropy, reduce)


@attention_statistics.register_fake
def _(q, k, v, mask, weights, causal, scale, entropy, reduce, impl):
    return tuple(torch.empty_like(t) for t in _outputs(q, k, v, weights, entropy, reduce))


@register_flop_formula(torch.ops.mm.attention_statistics)
def _flops(q_shape, k_shape, v_shape=None, *args, out_shape=None, **kwargs) -> int:
    batch, heads, count, width = q_shape
    return 2 * batch * heads * count * k_shape[2] * (width + (v_shape[3] if v_shape else 0))


def _outputs(q, k, v, weights, entropy, reduce) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Uninitialised results; the output keeps the (B, N, H, D) memory order that attention layers reshape from."""
    batch, heads, count, _ = q.shape
    stat = torch.float64 if q.dtype == torch.float64 else torch.float32
    lead = (batch,) if reduce else (batch, heads)
    out = q.new_empty((0,))
    if v is not None:
        out = q.new_empty((batch, count, heads, v.shape[3])).transpose(1, 2)
    sums = q.new_empty((0,) if weights is None else (*lead, k.shape[2]), dtype=stat)
    spread = q.new_empty((*lead, count) if entropy else (0,), dtype=stat)
    return out, sums, spread, q.new_empty((batch, heads, count) if entropy else (0,), dtype=stat)


def _blocked(q, k, v, mask, weights, causal, scale, entropy, reduce) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, heads, count, _ = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    group = heads // kv_heads
    results = out, sums, spread, lse = _outputs(q, k, v, weights, entropy, reduce)
    stat = torch.float64 if q.dtype == torch.float64 else torch.float32
    per_head = torch.zeros((heads, keys), dtype=stat, device=q.device)
    spread_of = torch.empty((heads, count), dtype=stat, device=q.device)
    # Many short queries: several heads in one matmul. Long ones: one key head, blocks of queries.
    together = max(1, min(kv_heads, _BLOCK // max(1, group * count * keys)))
    step = max(1, min(count, _BLOCK // (group * keys)))
    step = -(-count // -(-count // step)) if count else 1  # blocks of equal size
    memory = torch.empty(2, together * group * step * keys, dtype=stat, device=q.device)
    for b in range(batch):
        per_head.zero_()
        for first in range(0, kv_heads, together):
            last = min(kv_heads, first + together)
            kv = slice(first, last)
            at = slice(first * group, last * group)
            key = k[b, kv].to(stat).transpose(1, 2)  # (c, D, M)
            value = None if v is None else v[b, kv].to(stat)
            for start in range(0, count, step):
                here = slice(start, min(count, start + step))
                n = here.stop - start
                scores, p = (m[: (last - first) * group * n * keys].view(last - first, group * n, keys) for m in memory)
                query = rearrange(q[b, at, here].to(stat) * scale, "(c g) n d -> c (g n) d", g=group)
                torch.bmm(query, key, out=scores)
                tile = rearrange(scores, "c (g n) m -> (c g) n m", g=group)
                dead = _apply_mask(tile, mask, b, at, here, causal)
                torch._softmax(scores, -1, False, out=p)
                rows = rearrange(p, "c (g n) m -> (c g) n m", g=group)
                if dead is not None:
                    rows.masked_fill_(dead, 0)
                if value is not None:
                    out[b, at, here] = rearrange(torch.bmm(p, value), "c (g n) d -> (c g) n d", g=group).to(out.dtype)
                if weights is not None:
                    per_head[at] += weights[b, here] @ rows
                if entropy:
                    lse[b, at, here], spread_of[at, here] = _spread(tile, rows)
        if weights is not None:
            sums[b] = per_head.mean(0) if reduce else per_head
        if entropy:
            spread[b] = spread_of.mean(0) if reduce else spread_of
    return results


def _spread(scores: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Log-sum-exp and entropy of each row; overwrites the scores. With top = max z: H = ln S - sum p (z - top)."""
    top = scores.amax(-1, keepdim=True)
    log_sum = -p.amax(-1).log()  # lse - top, because the largest p is exp(top - lse)
    centred = scores.sub_(top.clamp_min(torch.finfo(top.dtype).min)).clamp_min_(-1e30)  # 0 * -inf would be NaN
    entropy = log_sum - centred.mul_(p).sum(-1)
    top, empty = top.squeeze(-1), top.squeeze(-1) == -torch.inf
    return (top + log_sum).masked_fill(empty, -torch.inf), entropy.masked_fill(empty, 0)


def _apply_mask(tile: Tensor, mask: Tensor | None, b: int, heads: slice, here: slice, causal: bool) -> Tensor | None:
    """Mask one tile of scores (h, n, M) in place; tells which of its rows are empty, (h, n, 1)."""
    if mask is None and not causal:
        return None
    if causal:
        position = torch.arange(here.start, here.stop, device=tile.device)
        hidden = torch.arange(tile.shape[2], device=tile.device) > position[:, None]
        tile.masked_fill_(hidden, -torch.inf)
    if mask is not None:
        part = mask[b if mask.shape[0] > 1 else 0]
        part = part[heads] if part.shape[0] > 1 else part
        part = part[:, here] if part.shape[1] > 1 else part
        if part.dtype == torch.bool:
            tile.masked_fill_(~part, -torch.inf)
        else:
            tile += part
    return (tile == -torch.inf).all(-1, keepdim=True) if mask is not None else None


def _reference(q, k, v, mask, weights, causal, scale, entropy, reduce) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The definition, with the whole matrix."""
    p, lse = _dense(q, k, mask, causal, scale)
    out, sums, spread, log = _outputs(q, k, v, weights, entropy, reduce)
    if v is not None:
        out.copy_(p @ _per_query_head(v, q.shape[1]).to(p.dtype))
    if weights is not None:
        received = torch.einsum("bn,bhnm->bhm", weights, p)
        sums.copy_(received.mean(1) if reduce else received)
    if entropy:
        each = torch.special.entr(p).sum(-1)
        spread.copy_(each.mean(1) if reduce else each)
        log.copy_(lse)
    return out, sums, spread, log


def _dense(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Probabilities (B, H, N, M) and log-sum-exp (B, H, N); empty rows are zero and -inf."""
    stat = torch.float64 if q.dtype == torch.float64 else torch.float32
    z = q.to(stat) @ _per_query_head(k, q.shape[1]).to(stat).transpose(-1, -2) * scale
    if mask is not None:
        z = z.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else z + mask
    if causal:
        z = z.masked_fill(~z.new_ones(z.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
    return z.softmax(-1).masked_fill((z == -torch.inf).all(-1, keepdim=True), 0), z.logsumexp(-1)


def _per_query_head(x: Tensor, heads: int) -> Tensor:
    return repeat(x, "b g m d -> b (g r) m d", r=heads // x.shape[1])


@torch.library.custom_op("mm::attention_rows", mutates_args=())
def attention_rows(q: Tensor, k: Tensor, mask: Tensor | None, scale: float, reduce: bool, impl: str) -> Tensor:
    """Softmax rows of the chosen queries q (B, H, R, D) over the keys k (B, G, M, D): (B, [H,] R, M)."""
    with torch.autocast(q.device.type, enabled=False):
        if impl == "triton" and q.device.type == "cuda":
            from mm.kernels.attention_statistics_triton import row_scores

            z = row_scores(q, k, scale)
        else:
            z = _row_scores(q, k, scale)
        if mask is not None:
            z = z.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else z + mask
        p = z.softmax(-1)
        if mask is not None:
            p = p.masked_fill((z == -torch.inf).all(-1, keepdim=True), 0)
        return p.mean(1) if reduce else p


@attention_rows.register_fake
def _(q, k, mask, scale, reduce, impl):
    stat = torch.float64 if q.dtype == torch.float64 else torch.float32
    batch, heads, rows, _ = q.shape
    return q.new_empty((batch, rows, k.shape[2]) if reduce else (batch, heads, rows, k.shape[2]), dtype=stat)


def _row_scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Scaled scores (B, H, R, M). Sample by sample, because a batched matmul would copy keys in (B, N, H, D) order."""
    stat = torch.float64 if q.dtype == torch.float64 else torch.float32
    batch, heads, rows, width = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    query = (q.to(stat) * scale).reshape(batch, kv_heads, heads // kv_heads * rows, width)
    z = query.new_empty((batch, kv_heads, query.shape[2], keys))
    for b in range(batch):
        torch.bmm(query[b], k[b].to(stat).transpose(1, 2), out=z[b])
    return z.view(batch, heads, rows, keys)


@register_flop_formula(torch.ops.mm.attention_rows)
def _row_flops(q_shape, k_shape, *args, out_shape=None, **kwargs) -> int:
    batch, heads, rows, width = q_shape
    return 2 * batch * heads * rows * k_shape[2] * width
