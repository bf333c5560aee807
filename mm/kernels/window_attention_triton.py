"""Triton kernels of 3-D window attention: forward, and a backward in three passes that recompute the softmax.

Queries, keys and values are read through the index table straight from the (B, T, 3, heads, E) projection. The bias is
written once per call in units of log2, padded to whole tiles with -inf beyond the window, so that the inner loops carry
no bounds checks. Every output element is summed by one program in a fixed order: no atomics, repeatable gradients.
Dims: B batch, G windows, n tokens per window (constexpr), P = n rounded up to tiles, E channels per head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from mm.kernels.dispatch import triton_is_interpreted
from mm.kernels.windows import pairs_by_row

LOG2E = math.log2(math.e)
PAD_TO = 128
"""Bias rows and columns are padded to a multiple of this, or to 64 if the window fits; tile sides must divide it."""


@dataclass(frozen=True)
class Tiles:
    """Launch constants of one kernel."""

    rows: int
    columns: int
    warps: int
    stages: int = 2


TILES = {
    ("forward", True): Tiles(64, 32, 4),
    ("queries", True): Tiles(128, 32, 4),
    ("keys", True): Tiles(64, 128, 4, 3),
    ("bias", True): Tiles(128, 64, 4, 1),
    ("forward", False): Tiles(64, 64, 4),
    ("queries", False): Tiles(64, 64, 4),
    ("keys", False): Tiles(64, 64, 4),
    ("bias", False): Tiles(64, 64, 4),
}
"""(kernel, half precision) -> launch constants, chosen on an H200 (sm_90)."""
BIAS_PROGRAMS = 1024
"""Programs of the bias gradient: enough to fill the device, few enough that partial sums stay small."""


@triton.jit
def _load_rows(base, token, channel, STRIDE: tl.constexpr, E: tl.constexpr, UPCAST: tl.constexpr):
    """Rows of one head: (tile, E padded), zeros where token is -1."""
    where = (token >= 0)[:, None] & (channel < E)[None, :]
    x = tl.load(base + token.to(tl.int64)[:, None] * STRIDE + channel[None, :], mask=where, other=0.0)
    if UPCAST:
        x = x.to(tl.float32)
    return x


@triton.jit
def _fill_border(x, token, inside, pad, channel, E: tl.constexpr):
    """What places beyond the border hold: `pad` (E,) in the rows of x whose token is -1."""
    value = tl.load(pad + channel, mask=channel < E, other=0.0).to(x.dtype)
    border = (token < 0) & inside
    return tl.where(border[:, None], value[None, :], x)


@triton.jit
def _forward_kernel(
    tokens, bias, index, labels, pad, out, lse, scale, G, T,
    H: tl.constexpr, n: tl.constexpr, P: tl.constexpr, E: tl.constexpr, EP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, LABELS: tl.constexpr, PAD: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    window, head, tile = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    batch, group = window // G, window % G
    channel = tl.arange(0, EP)
    row = tile * BM + tl.arange(0, BM)
    row_token = tl.load(index + group * n + row, mask=row < n, other=-1)
    base = tokens + (batch * T * 3 * H + head) * E
    q = _load_rows(base, row_token, channel, 3 * H * E, E, UPCAST)
    if LABELS:
        row_label = tl.load(labels + group * n + row, mask=row < n, other=-2)
    top = tl.full((BM,), -1e30, tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, EP), tl.float32)
    for start in range(0, P, BN):
        column = start + tl.arange(0, BN)
        token = tl.load(index + group * n + column, mask=column < n, other=-1)
        k = _load_rows(base + H * E, token, channel, 3 * H * E, E, UPCAST)
        v = _load_rows(base + 2 * H * E, token, channel, 3 * H * E, E, UPCAST)
        if PAD:
            k = _fill_border(k, token, column < n, pad + H * E + head * E, channel, E)
            v = _fill_border(v, token, column < n, pad + 2 * H * E + head * E, channel, E)
        score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        score += tl.load(bias + (head * P + row)[:, None] * P + column[None, :])
        if LABELS:
            label = tl.load(labels + group * n + column, mask=column < n, other=-2)
            score = tl.where(row_label[:, None] == label[None, :], score, -1e30)
        new_top = tl.maximum(top, tl.max(score, 1))
        p = tl.exp2(score - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        top = new_top
    acc = acc / total[:, None]
    where = (row_token >= 0)[:, None] & (channel < E)[None, :]
    target = out + ((batch * T + row_token.to(tl.int64)[:, None]) * H + head) * E + channel[None, :]
    tl.store(target, acc.to(out.dtype.element_ty), mask=where)
    natural = (top + tl.log2(total)) * 0.6931471805599453
    tl.store(lse + (window * H + head) * n + row, natural, mask=row < n)


@triton.jit
def _keys_kernel(
    tokens, bias_t, index, labels, pad, grad, lse, delta, d_tokens, d_pad, scale, G, T,
    H: tl.constexpr, n: tl.constexpr, P: tl.constexpr, E: tl.constexpr, EP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, LABELS: tl.constexpr, PAD: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """d_k, d_v of one tile of BN keys: loops over tiles of BM queries, scores transposed (keys, queries)."""
    window, head, tile = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    batch, group = window // G, window % G
    channel = tl.arange(0, EP)
    column = tile * BN + tl.arange(0, BN)
    token = tl.load(index + group * n + column, mask=column < n, other=-1)
    base = tokens + (batch * T * 3 * H + head) * E
    k = _load_rows(base + H * E, token, channel, 3 * H * E, E, UPCAST)
    v = _load_rows(base + 2 * H * E, token, channel, 3 * H * E, E, UPCAST)
    if PAD:
        k = _fill_border(k, token, column < n, pad + H * E + head * E, channel, E)
        v = _fill_border(v, token, column < n, pad + 2 * H * E + head * E, channel, E)
    if LABELS:
        label = tl.load(labels + group * n + column, mask=column < n, other=-2)
    d_k = tl.zeros((BN, EP), tl.float32)
    d_v = tl.zeros((BN, EP), tl.float32)
    for start in range(0, P, BM):
        row = start + tl.arange(0, BM)
        row_token = tl.load(index + group * n + row, mask=row < n, other=-1)
        q = _load_rows(base, row_token, channel, 3 * H * E, E, UPCAST)
        d_out = _load_rows(grad + (batch * T * H + head) * E, row_token, channel, H * E, E, UPCAST)
        row_lse = tl.load(lse + (window * H + head) * n + row, mask=row < n, other=1e30) * 1.4426950408889634
        row_delta = tl.load(delta + (window * H + head) * n + row, mask=row < n, other=0.0)
        score = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale  # (BN, BM)
        score += tl.load(bias_t + (head * P + column)[:, None] * P + row[None, :])
        if LABELS:
            row_label = tl.load(labels + group * n + row, mask=row < n, other=-2)
            score = tl.where(label[:, None] == row_label[None, :], score, -1e30)
        p = tl.exp2(score - row_lse[None, :])
        d_v += tl.dot(p.to(d_out.dtype), d_out, input_precision=PRECISION)
        d_p = tl.dot(v, tl.trans(d_out), input_precision=PRECISION)
        d_score = p * (d_p - row_delta[None, :])
        d_k += tl.dot(d_score.to(q.dtype), q, input_precision=PRECISION)
    d_k *= scale * 0.6931471805599453  # `scale` is in units of log2
    where = (token >= 0)[:, None] & (channel < E)[None, :]
    target = d_tokens + ((batch * T + token.to(tl.int64)[:, None]) * 3 * H + head) * E + channel[None, :]
    tl.store(target + H * E, d_k.to(d_tokens.dtype.element_ty), mask=where)
    tl.store(target + 2 * H * E, d_v.to(d_tokens.dtype.element_ty), mask=where)
    if PAD:
        border = ((token < 0) & (column < n))[:, None]
        part = d_pad + ((window * tl.num_programs(2) + tile) * 3 * H + head) * E + channel
        tl.store(part, tl.zeros((EP,), tl.float32), mask=channel < E)  # queries beyond the border are never asked
        tl.store(part + H * E, tl.sum(tl.where(border, d_k, 0.0), 0), mask=channel < E)
        tl.store(part + 2 * H * E, tl.sum(tl.where(border, d_v, 0.0), 0), mask=channel < E)


@triton.jit
def _queries_kernel(
    tokens, bias, index, labels, pad, grad, out, lse, delta, d_tokens, scale, G, T,
    H: tl.constexpr, n: tl.constexpr, P: tl.constexpr, E: tl.constexpr, EP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, LABELS: tl.constexpr, PAD: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """d_q of one tile of BM queries: loops over tiles of BN keys. Writes delta = sum(d_out * out) for the others."""
    window, head, tile = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    batch, group = window // G, window % G
    channel = tl.arange(0, EP)
    row = tile * BM + tl.arange(0, BM)
    row_token = tl.load(index + group * n + row, mask=row < n, other=-1)
    inside = row_token >= 0
    base = tokens + (batch * T * 3 * H + head) * E
    q = _load_rows(base, row_token, channel, 3 * H * E, E, UPCAST)
    d_out = _load_rows(grad + (batch * T * H + head) * E, row_token, channel, H * E, E, UPCAST)
    row_lse = tl.load(lse + (window * H + head) * n + row, mask=row < n, other=1e30) * 1.4426950408889634
    made = _load_rows(out + (batch * T * H + head) * E, row_token, channel, H * E, E, UPCAST)
    row_delta = tl.sum(d_out.to(tl.float32) * made.to(tl.float32), 1)
    tl.store(delta + (window * H + head) * n + row, row_delta, mask=row < n)
    if LABELS:
        row_label = tl.load(labels + group * n + row, mask=row < n, other=-2)
    d_q = tl.zeros((BM, EP), tl.float32)
    for start in range(0, P, BN):
        column = start + tl.arange(0, BN)
        token = tl.load(index + group * n + column, mask=column < n, other=-1)
        k = _load_rows(base + H * E, token, channel, 3 * H * E, E, UPCAST)
        v = _load_rows(base + 2 * H * E, token, channel, 3 * H * E, E, UPCAST)
        if PAD:
            k = _fill_border(k, token, column < n, pad + H * E + head * E, channel, E)
            v = _fill_border(v, token, column < n, pad + 2 * H * E + head * E, channel, E)
        score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        score += tl.load(bias + (head * P + row)[:, None] * P + column[None, :])
        if LABELS:
            label = tl.load(labels + group * n + column, mask=column < n, other=-2)
            score = tl.where(row_label[:, None] == label[None, :], score, -1e30)
        p = tl.exp2(score - row_lse[:, None])
        d_p = tl.dot(d_out, tl.trans(v), input_precision=PRECISION)
        d_score = p * (d_p - row_delta[:, None])
        d_q += tl.dot(d_score.to(k.dtype), k, input_precision=PRECISION)
    where = inside[:, None] & (channel < E)[None, :]
    target = d_tokens + ((batch * T + row_token.to(tl.int64)[:, None]) * 3 * H + head) * E + channel[None, :]
    tl.store(target, (d_q * scale * 0.6931471805599453).to(d_tokens.dtype.element_ty), mask=where)


@triton.jit
def _bias_kernel(
    tokens, bias, index, labels, pad, grad, lse, delta, d_bias, scale, G, T, windows,
    H: tl.constexpr, n: tl.constexpr, P: tl.constexpr, E: tl.constexpr, EP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, LABELS: tl.constexpr, PAD: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr, EACH: tl.constexpr,
):  # fmt: skip
    """Score gradients of one (head, query tile, key tile), summed over EACH windows in order."""
    part, head, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    across: tl.constexpr = P // BN
    channel = tl.arange(0, EP)
    row = (tile // across) * BM + tl.arange(0, BM)
    column = (tile % across) * BN + tl.arange(0, BN)
    pair_bias = tl.load(bias + (head * P + row)[:, None] * P + column[None, :])
    acc = tl.zeros((BM, BN), tl.float32)
    for step in range(EACH):
        window = (part * EACH + step).to(tl.int64)
        batch, group = window // G, window % G
        row_ok = (row < n) & (window < windows)
        row_token = tl.load(index + group * n + row, mask=row_ok, other=-1)
        token = tl.load(index + group * n + column, mask=column < n, other=-1)
        # past the last window: read the first sample, whose scores the infinite lse below turns to nothing
        batch = tl.where(window < windows, batch, 0)
        base = tokens + (batch * T * 3 * H + head) * E
        q = _load_rows(base, row_token, channel, 3 * H * E, E, UPCAST)
        k = _load_rows(base + H * E, token, channel, 3 * H * E, E, UPCAST)
        v = _load_rows(base + 2 * H * E, token, channel, 3 * H * E, E, UPCAST)
        if PAD:
            k = _fill_border(k, token, column < n, pad + H * E + head * E, channel, E)
            v = _fill_border(v, token, column < n, pad + 2 * H * E + head * E, channel, E)
        d_out = _load_rows(grad + (batch * T * H + head) * E, row_token, channel, H * E, E, UPCAST)
        row_lse = tl.load(lse + (window * H + head) * n + row, mask=row_ok, other=1e30) * 1.4426950408889634
        row_delta = tl.load(delta + (window * H + head) * n + row, mask=row_ok, other=0.0)
        score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + pair_bias
        if LABELS:
            row_label = tl.load(labels + group * n + row, mask=row_ok, other=-2)
            label = tl.load(labels + group * n + column, mask=column < n, other=-2)
            score = tl.where(row_label[:, None] == label[None, :], score, -1e30)
        p = tl.exp2(score - row_lse[:, None])
        acc += p * (tl.dot(d_out, tl.trans(v), input_precision=PRECISION) - row_delta[:, None])
    where = (row < n)[:, None] & (column < n)[None, :]
    tl.store(d_bias + ((part * H + head) * n + row)[:, None].to(tl.int64) * n + column[None, :], acc, mask=where)


@triton.jit
def _expand_kernel(
    bias, pairs, log2_bias, transposed,
    H: tl.constexpr, n: tl.constexpr, P: tl.constexpr, SIDE: tl.constexpr, TABLE: tl.constexpr, BOTH: tl.constexpr,
):  # fmt: skip
    """The bias in units of log2, (heads, P, P): from the table (R, heads) by `pairs`, or from (heads, n, n)."""
    head, across = tl.program_id(0), tl.program_id(2)
    row = tl.program_id(1) * SIDE + tl.arange(0, SIDE)
    column = across * SIDE + tl.arange(0, SIDE)
    inside = (row < n)[:, None] & (column < n)[None, :]
    place = row[:, None] * n + column[None, :]
    if TABLE:
        place = tl.load(pairs + place, mask=inside, other=0) * H + head
    else:
        place += head * n * n
    x = tl.load(bias + place, mask=inside, other=0.0).to(tl.float32) * 1.4426950408889634
    x = tl.where((column < n)[None, :], x, -float("inf"))
    x = x.to(log2_bias.dtype.element_ty)
    tl.store(log2_bias + (head * P + row)[:, None] * P + column[None, :], x)
    if BOTH:
        tl.store(transposed + head * P * P + column[None, :] * P + row[:, None], x)


@triton.jit
def _table_kernel(
    partial, order, first, d_table, parts, H: tl.constexpr, n: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Gradient of one table row and head: all pairs with that offset (at most n), all partial sums, in order."""
    entry, head = tl.program_id(0), tl.program_id(1)
    begin, end = tl.load(first + entry), tl.load(first + entry + 1)
    place = begin + tl.arange(0, BLOCK)
    pair = tl.load(order + place, mask=place < end, other=0)
    acc = tl.zeros((BLOCK,), tl.float32)
    part = 0
    while part < parts:
        acc += tl.load(partial + (part * H + head).to(tl.int64) * n * n + pair, mask=place < end, other=0.0)
        part += 1
    tl.store(d_table + entry * H + head, tl.sum(acc, 0))


def forward(
    tokens: Tensor,
    bias: Tensor,
    pairs: Tensor | None,
    index: Tensor,
    labels: Tensor | None,
    pad: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Launcher of the forward pass; arguments and results as in `window_attention_op`."""
    tokens, pad = tokens.contiguous(), _contiguous(pad)
    batch, length, _, heads, size = tokens.shape
    groups, n = index.shape
    out = tokens.new_empty(batch, length, heads, size)
    lse = torch.empty(batch, groups, heads, n, dtype=torch.float32, device=tokens.device)
    log2_bias, _ = _log2_bias(bias, pairs, heads, n, _bias_dtype(tokens), both=False)
    tiles, common = _common("forward", tokens, index, labels, pad)
    _forward_kernel[batch * groups, heads, triton.cdiv(n, tiles.rows)](
        tokens, log2_bias, index, labels, pad, out, lse, scale * LOG2E, groups, length, **common
    )
    return out, lse


def backward(
    grad: Tensor,
    tokens: Tensor,
    bias: Tensor,
    pairs: Tensor | None,
    index: Tensor,
    labels: Tensor | None,
    pad: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
    with_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launcher of the backward pass; arguments and results as in `window_attention_backward_op`."""
    tokens, grad, pad = tokens.contiguous(), grad.contiguous(), _contiguous(pad)
    batch, length, _, heads, size = tokens.shape
    groups, n = index.shape
    windows = batch * groups
    d_tokens, delta = torch.empty_like(tokens), torch.empty_like(lse)
    log2_bias, transposed = _log2_bias(bias, pairs, heads, n, _bias_dtype(tokens), both=True)
    end = (scale * LOG2E, groups, length)

    tiles, common = _common("queries", tokens, index, labels, pad)
    _queries_kernel[windows, heads, triton.cdiv(n, tiles.rows)](
        tokens, log2_bias, index, labels, pad, grad, out, lse, delta, d_tokens, *end, **common
    )
    tiles, common = _common("keys", tokens, index, labels, pad)
    count = triton.cdiv(n, tiles.columns)
    d_pad = torch.empty(0 if pad is None else windows * count, 3, heads, size, device=tokens.device)
    _keys_kernel[windows, heads, count](
        tokens, transposed, index, labels, pad, grad, lse, delta, d_tokens, d_pad, *end, **common
    )
    d_bias = bias.new_empty(0)
    if with_bias:
        partial = _score_gradient(tokens, log2_bias, index, labels, pad, grad, lse, delta, end)
        d_bias = partial.sum(0) if pairs is None else _table_gradient(partial, bias, pairs)
    return d_tokens, d_bias, d_pad.sum(0).to(tokens.dtype)


def _score_gradient(
    tokens: Tensor,
    log2_bias: Tensor,
    index: Tensor,
    labels: Tensor | None,
    pad: Tensor | None,
    grad: Tensor,
    lse: Tensor,
    delta: Tensor,
    end: tuple[float, int, int],
) -> Tensor:
    """Partial sums of the score gradients over runs of windows, (parts, heads, n, n) fp32."""
    heads, (groups, n) = tokens.shape[3], index.shape
    windows = len(tokens) * groups
    tiles, common = _common("bias", tokens, index, labels, pad)
    squares = triton.cdiv(n, tiles.rows) * (_padded(n) // tiles.columns)
    parts = min(windows, max(1, BIAS_PROGRAMS // (squares * heads)))
    each = triton.next_power_of_2(triton.cdiv(windows, parts))  # a power of two keeps the number of compilations small
    parts = triton.cdiv(windows, each)
    partial = torch.empty(parts, heads, n, n, dtype=torch.float32, device=tokens.device)
    _bias_kernel[parts, heads, squares](
        tokens, log2_bias, index, labels, pad, grad, lse, delta, partial, *end, windows, EACH=each, **common
    )
    return partial


def _table_gradient(partial: Tensor, table: Tensor, pairs: Tensor) -> Tensor:
    """(parts, heads, n, n) summed over parts and over the pairs that share a table row -> (R, heads)."""
    parts, heads, n, _ = partial.shape
    order, first = pairs_by_row(pairs, len(table))
    d_table = torch.empty(table.shape, dtype=torch.float32, device=table.device)
    block = triton.next_power_of_2(n)
    _table_kernel[len(table), heads](partial, order, first, d_table, parts, H=heads, n=n, BLOCK=block)
    return d_table.to(table.dtype)


def _bias_dtype(tokens: Tensor) -> torch.dtype:
    """float16 beside half-precision tokens: half the traffic, and 8 times finer than bfloat16's own rounding."""
    return torch.float16 if tokens.element_size() == 2 else torch.float32


def _log2_bias(
    bias: Tensor, pairs: Tensor | None, heads: int, n: int, dtype: torch.dtype, *, both: bool
) -> tuple[Tensor, Tensor]:
    """(heads, P, P) in units of log2, -inf in the added columns and 0 in the added rows; and its transpose."""
    size, side = _padded(n), 32
    log2_bias = torch.empty(heads, size, size, dtype=dtype, device=bias.device)
    transposed = torch.empty_like(log2_bias) if both else log2_bias
    _expand_kernel[heads, size // side, size // side](
        bias.contiguous(), pairs, log2_bias, transposed,
        H=heads, n=n, P=size, SIDE=side, TABLE=pairs is not None, BOTH=both,
    )  # fmt: skip
    return log2_bias, transposed


def _common(
    kernel: str, tokens: Tensor, index: Tensor, labels: Tensor | None, pad: Tensor | None
) -> tuple[Tiles, dict[str, object]]:
    """Launch constants and the compile-time arguments that all kernels share."""
    tiles = TILES[kernel, tokens.element_size() == 2]
    size = _padded(index.shape[1])
    tiles = replace(tiles, rows=min(tiles.rows, size), columns=min(tiles.columns, size))
    constants = {
        "H": tokens.shape[3],
        "n": index.shape[1],
        "P": size,
        "E": tokens.shape[4],
        "EP": max(16, triton.next_power_of_2(tokens.shape[4])),
        "BM": tiles.rows,
        "BN": tiles.columns,
        "LABELS": labels is not None,
        "PAD": pad is not None,
        "UPCAST": triton_is_interpreted(),  # the interpreter computes bfloat16 wrongly
        "PRECISION": "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32",
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }
    return tiles, constants


def _padded(n: int) -> int:
    """P, a multiple of every tile side."""
    return 64 if n <= 64 else triton.cdiv(n, PAD_TO) * PAD_TO


def _contiguous(pad: Tensor | None) -> Tensor | None:
    return None if pad is None else pad.contiguous()
