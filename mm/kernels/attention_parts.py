"""Flash attention over the parts of a known mask, merged by log-sum-exp; forward and backward.

A query that meets its keys in several parts gets o = sum_p exp(l_p - l) o_p with l = logsumexp_p l_p. The backward pass
of a part is plain flash backward given the *merged* output and l: exp(s - l) is then the true probability and
sum(d_out * o) the true row term, so no gradient of a log-sum-exp is ever needed.
Dims: B batch, H query heads, K key/value heads (K divides H, used by index), N queries, M keys, E channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from mm.kernels.masks import Part

aten = torch.ops.aten


def encode(parts: list[Part]) -> list[int]:
    """Parts as the flat list of integers that an operator takes."""
    return [int(x) for p in parts for x in (p.merge, p.q0, p.q1, p.k0, p.k1, p.causal, p.b0, p.b1)]


def _decode(numbers: list[int]) -> list[Part]:
    rows = [numbers[i : i + 8] for i in range(0, len(numbers), 8)]
    return [Part(bool(m), q0, q1, k0, k1, bool(causal), b0, b1) for m, q0, q1, k0, k1, causal, b0, b1 in rows]


@torch.library.custom_op("mm::attention_parts", mutates_args=())
def attention_parts(q: Tensor, k: Tensor, v: Tensor, parts: list[int], scale: float) -> tuple[Tensor, Tensor]:
    """Attention over the given parts only.

    Args:
        q: (B, H, N, E). k, v: (B, K, M, E). float16 or bfloat16 on CUDA, any floating dtype on CPU.
        parts: `encode(mask.parts(...))`.
        scale: Multiplier of q k.

    Returns:
        Output (B, H, N, E), zero for queries without a key, and its log-sum-exp (B, H, N), -inf there.
    """
    return (_forward_varlen if q.is_cuda else _forward_cpu)(q, k, v, _decode(parts), scale)


@attention_parts.register_fake
def _(q, k, v, parts, scale):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))


@torch.library.custom_op("mm::attention_parts_backward", mutates_args=())
def attention_parts_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, parts: list[int], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v from the merged output and log-sum-exp."""
    run = _backward_varlen if q.is_cuda else _backward_cpu
    return run(grad, q, k, v, out, lse, _decode(parts), scale)


@attention_parts_backward.register_fake
def _(grad, q, k, v, out, lse, parts, scale):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    q, k, v, ctx.parts, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad, grad_lse):  # type: ignore[no-untyped-def]
    if grad_lse is not None:
        raise NotImplementedError("the log-sum-exp of attention_parts carries no gradient; detach it")
    if grad is None:
        return None, None, None, None, None
    q, k, v, out, lse = ctx.saved_tensors
    return *attention_parts_backward(grad, q, k, v, out, lse, ctx.parts, ctx.scale), None, None


attention_parts.register_autograd(_backward, setup_context=_setup)


def _forward_cpu(q: Tensor, k: Tensor, v: Tensor, parts: list[Part], scale: float) -> tuple[Tensor, Tensor]:
    """One call of torch's CPU flash attention per part, on views."""
    wide = torch.promote_types(q.dtype, torch.float32)
    out = q.new_zeros(q.shape, dtype=wide if any(part.merge for part in parts) else q.dtype)
    lse = q.new_full(q.shape[:3], -torch.inf, dtype=wide)
    for part in parts:
        rows, keys = _slices(part)
        made, weight = aten._scaled_dot_product_flash_attention_for_cpu(
            q[rows], k[keys], v[keys], 0.0, part.causal, scale=scale
        )
        if part.merge:
            total = torch.logaddexp(lse[rows], weight)
            out[rows].mul_((lse[rows] - total).exp_()[..., None])
            out[rows].addcmul_(made.to(wide), (weight - total).exp_()[..., None])
            lse[rows] = total
        else:
            out[rows], lse[rows] = made, weight
    return out.to(q.dtype), lse


def _backward_cpu(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, parts: list[Part], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    wide = lse.dtype
    d_q, d_k, d_v = (torch.zeros(x.shape, dtype=wide) for x in (q, k, v))
    for part in parts:
        rows, keys = _slices(part)
        new_q, new_k, new_v = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad[rows], q[rows], k[keys], v[keys], out[rows], lse[rows], 0.0, part.causal, scale=scale
        )
        d_q[rows] += new_q
        d_k[keys] += new_k
        d_v[keys] += new_v
    return d_q.to(q.dtype), d_k.to(k.dtype), d_v.to(v.dtype)


def _slices(part: Part) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    batch = slice(part.b0, part.b1)
    return (batch, slice(None), slice(part.q0, part.q1)), (batch, slice(None), slice(part.k0, part.k1))


class _Call(NamedTuple):
    """One variable-length flash call: all parts of the same kind in the whole batch."""

    merge: bool
    causal: bool
    queries: Tensor
    """Rows of the flattened batch (B N), in the order of the call."""
    keys: Tensor
    query_ends: Tensor
    """Cumulative lengths, int32, starting with 0."""
    key_ends: Tensor
    longest: tuple[int, int]


@lru_cache(maxsize=64)
def _calls(parts: tuple[Part, ...], num_queries: int, num_keys: int, device: torch.device) -> list[_Call]:
    """Group parts into at most four calls; the index tables are kept per mask and shape."""
    groups: dict[tuple[bool, bool], list[tuple[int, Part]]] = {}
    for part in parts:
        for row in range(part.b0, part.b1):
            groups.setdefault((part.merge, part.causal), []).append((row, part))
    calls = []
    for (merge, causal), members in sorted(groups.items(), key=lambda item: item[0][0]):
        queries = [(row * num_queries + p.q0, row * num_queries + p.q1) for row, p in members]
        keys = [(row * num_keys + p.k0, row * num_keys + p.k1) for row, p in members]
        longest = max(b - a for a, b in queries), max(b - a for a, b in keys)
        tables = [*_ranges(queries, device), *_ranges(keys, device)]
        calls.append(_Call(merge, causal, tables[0], tables[2], tables[1], tables[3], longest))
    return calls


def _ranges(spans: list[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Members of all spans one after the other, int64, and their cumulative lengths, int32."""
    members = torch.cat([torch.arange(a, b) for a, b in spans])
    ends = torch.tensor([0, *(b - a for a, b in spans)], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return members.to(device), ends.to(device)


def _flat(*tensors: Tensor) -> Iterator[Tensor]:
    return (rearrange(x, "b h n e -> (b n) h e") for x in tensors)


def _forward_varlen(q: Tensor, k: Tensor, v: Tensor, parts: list[Part], scale: float) -> tuple[Tensor, Tensor]:
    """At most four variable-length flash calls, whatever the number of parts and samples."""
    batch, heads, length, _ = q.shape
    flat_q, flat_k, flat_v = _flat(q, k, v)
    wide = any(part.merge for part in parts)
    out = torch.zeros(flat_q.shape, dtype=torch.float32 if wide else q.dtype, device=q.device)
    lse = torch.full((batch * length, heads), -torch.inf, device=q.device)
    for call in _calls(tuple(parts), length, k.shape[2], q.device):
        made, weight, *_ = aten._flash_attention_forward(
            flat_q[call.queries], flat_k[call.keys], flat_v[call.keys], call.query_ends, call.key_ends, *call.longest,
            0.0, call.causal, False, scale=scale,
        )  # fmt: skip
        weight = weight.mT  # (queries, heads)
        if call.merge:
            before = lse[call.queries]
            total = torch.logaddexp(before, weight)
            made = made * (weight - total).exp()[..., None] + out[call.queries] * (before - total).exp()[..., None]
            weight = total
        out[call.queries], lse[call.queries] = made.to(out.dtype), weight
    merged = rearrange(out.to(q.dtype), "(b n) h e -> b h n e", b=batch)
    return merged.contiguous(), rearrange(lse, "(b n) h -> b h n", b=batch).contiguous()


def _backward_varlen(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, parts: list[Part], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    flat = list(_flat(grad, q, k, v, out))
    flat_lse = rearrange(lse, "b h n -> h (b n)")
    d_q, d_k, d_v = (torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in flat[1:4])
    unused = torch.zeros(2, dtype=torch.uint64, device=q.device)  # random state of the dropout that is not used
    for call in _calls(tuple(parts), q.shape[2], k.shape[2], q.device):
        new_q, new_k, new_v = aten._flash_attention_backward(
            flat[0][call.queries], flat[1][call.queries], flat[2][call.keys], flat[3][call.keys],
            flat[4][call.queries], flat_lse[:, call.queries].contiguous(), call.query_ends, call.key_ends,
            *call.longest, 0.0, call.causal, unused, unused, scale=scale,
        )  # fmt: skip
        # within one call every query occurs once, and so does every key: plain additions, no atomics
        d_q[call.queries] += new_q
        d_k[call.keys] += new_k
        d_v[call.keys] += new_v
    shape = "(b n) h e -> b h n e"
    return tuple(  # type: ignore[return-value]
        rearrange(d.to(x.dtype), shape, b=len(x)).contiguous() for d, x in ((d_q, q), (d_k, k), (d_v, v))
    )
