"""3-D shifted-window attention with relative-position bias: tokens stay in the volume, no [windows, n, n] tensor.

out_i = sum_j softmax_j(scale q_i k_j + bias_ij, labels_i = labels_j) v_j inside each window (Swin, Liu et al. 2021,
arXiv:2103.14030, equation 4). Rolling, cutting into windows and putting back are one index table (`windows.py`).
The backward pass recomputes the softmax from its log-sum-exp, so memory grows with the tokens and not with n^2.
Dims: B batch, D H W volume, T = D H W tokens, C channels = heads x E, G windows, n tokens per window.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from einops import rearrange
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mm.kernels.dispatch import Candidate, Dispatcher, Situation, needs_triton, situation
from mm.kernels.windows import Size3, WindowLayout, check_table, pair_index, window_layout

BLOCK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
"""Score matrices that the blocked implementation holds at one time: what fits the cache, or fills the device."""


def _no_triton(where: Situation) -> str | None:
    return needs_triton(where) or (f"head size {where.head_dim} is above 128" if where.head_dim > 128 else None)


DISPATCH = Dispatcher(
    "window_attention_3d",
    Candidate("triton", "scores never leave the chip", _no_triton),
    Candidate("blocked", "a few windows at a time, softmax recomputed in the backward pass"),
    Candidate("reference", "plain torch, all windows at once"),
)


def shifted_window_attention(
    qkv: Tensor,
    *,
    num_heads: int,
    window: Size3,
    shift: Size3 = (0, 0, 0),
    table: Tensor | None = None,
    bias: Tensor | None = None,
    legacy_index: bool = False,
    pad: Tensor | None = None,
    scale: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """Attention inside the shifted windows of a volume; replaces pad, roll, partition, attention, reverse, roll, crop.

    Args:
        qkv: Queries, keys and values side by side, (B, D, H, W, 3 C), each C split as (heads, E).
        num_heads: Heads; must divide C.
        window: Window per axis; an axis no longer than its window becomes one unshifted window.
        shift: Cyclic shift per axis (Swin: window // 2 in every second block).
        table: Relative-position bias table made for `window`, (prod(2 w - 1), heads); differentiable.
        bias: Ready-made bias (heads, n, n) instead of `table`, or neither.
        legacy_index: See `relative_position_bias`; matters only when the window is clipped.
        pad: What places beyond the border hold, (3 C). The reference models pad *before* the projection, so their
            empty places take part as keys with the projection's bias: pass that. None keeps them out of the softmax.
        scale: Multiplier of q k, default E ** -0.5.
        impl: "auto", "triton", "blocked" or "reference".

    Returns:
        (B, D, H, W, C), dtype of `qkv`; differentiable in `qkv`, `table` or `bias`, and `pad`.

    Raises:
        ValueError: shapes that do not fit, both `table` and `bias`, or an `impl` that cannot run here.

    Example:
        >>> qkv, table = torch.randn(1, 4, 5, 6, 3 * 8), torch.zeros(3 * 3 * 3, 2)
        >>> shifted_window_attention(qkv, num_heads=2, window=(2, 2, 2), shift=(1, 1, 1), table=table).shape
        torch.Size([1, 4, 5, 6, 8])
    """
    if qkv.ndim != 5 or qkv.shape[-1] % (3 * num_heads):
        raise ValueError(f"qkv must be (B, D, H, W, 3 C) with num_heads={num_heads} dividing C, got {tuple(qkv.shape)}")
    dims = tuple(qkv.shape[1:4])
    layout = window_layout(dims, tuple(window), tuple(shift), qkv.device)  # type: ignore[arg-type]
    bias, pairs = _bias_and_pairs(table, bias, layout.window, tuple(window), num_heads, legacy_index, qkv)  # type: ignore[arg-type]
    labels = _without_border(layout) if pad is None and layout.padded else layout.labels
    empty = None if pad is None or not layout.padded else rearrange(pad, "(s h e) -> s h e", s=3, h=num_heads)
    tokens = rearrange(qkv, "b d x y (s h e) -> b (d x y) s h e", s=3, h=num_heads)
    out = _attend(tokens, bias, pairs, layout.index, labels, empty, scale, impl)
    return rearrange(out, "b (d x y) h e -> b d x y (h e)", d=dims[0], x=dims[1])


def window_attention_3d(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: Size3,
    table: Tensor | None = None,
    bias: Tensor | None = None,
    table_window: Size3 | None = None,
    legacy_index: bool = False,
    labels: Tensor | None = None,
    scale: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """Attention inside windows that are already cut out; `shifted_window_attention` saves the cutting.

    Args:
        q, k, v: (M, heads, n, E), n = prod(window), the windows of one sample one after the other.
        window: Window in use.
        table: Bias table made for `table_window` (default: `window`), (prod(2 w - 1), heads).
        bias: Ready-made bias (heads, n, n) instead of `table`.
        labels: Region of each place for the G windows of one sample, (G, n) int; equal labels attend to each other.
            G must divide M. The [G, n, n] mask of other implementations is never built.
        legacy_index, scale, impl: See `shifted_window_attention`.

    Returns:
        (M, heads, n, E), dtype of `q`.
    """
    windows, heads, n, _ = q.shape
    if k.shape != q.shape or v.shape != q.shape or n != window[0] * window[1] * window[2]:
        raise ValueError(
            f"q, k, v must be (windows, heads, {window[0] * window[1] * window[2]}, E) for window {window}, "
            f"got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    groups = 1 if labels is None else len(labels)
    if windows % groups or (labels is not None and labels.shape[1] != n):
        raise ValueError(f"labels {tuple(labels.shape)} must be (G, {n}) with G dividing {windows} windows")  # type: ignore[union-attr]
    bias, pairs = _bias_and_pairs(table, bias, window, table_window or window, heads, legacy_index, q)
    tokens = rearrange(torch.stack([q, k, v]), "s (b g) h n e -> b (g n) s h e", g=groups)
    index = torch.arange(groups * n, dtype=torch.int32, device=q.device).view(groups, n)
    regions = None if labels is None else labels.to(torch.int32)
    out = _attend(tokens, bias, pairs, index, regions, None, scale, impl)
    return rearrange(out, "b (g n) h e -> (b g) h n e", g=groups)


def _bias_and_pairs(
    table: Tensor | None,
    bias: Tensor | None,
    window: Size3,
    table_window: Size3,
    heads: int,
    legacy_index: bool,
    like: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """Either the table (R, heads) with its pair index (n, n), or a bias (heads, n, n); in float32 at least."""
    n = window[0] * window[1] * window[2]
    if table is not None and bias is not None:
        raise ValueError("give the relative-position table or a ready-made bias, not both")
    dtype = torch.promote_types(like.dtype, torch.float32)
    if table is not None:
        check_table(table, table_window)
        if table.shape[1] != heads:
            raise ValueError(f"the bias table has {table.shape[1]} columns, found {heads} heads")
        return table.to(dtype), pair_index(window, table_window, legacy_index, table.device)
    if bias is None:
        bias = like.new_zeros((), dtype=dtype).expand(heads, n, n)
    if bias.shape != (heads, n, n):
        raise ValueError(f"the bias must be (heads, n, n) = ({heads}, {n}, {n}), got {tuple(bias.shape)}")
    return bias.to(dtype), None


def _without_border(layout: WindowLayout) -> Tensor:
    """Region labels in which places beyond the border are a region of their own."""
    labels = torch.zeros_like(layout.index) if layout.labels is None else layout.labels
    return labels.masked_fill(layout.index < 0, -1)


def _attend(
    tokens: Tensor,
    bias: Tensor,
    pairs: Tensor | None,
    index: Tensor,
    labels: Tensor | None,
    pad: Tensor | None,
    scale: float | None,
    impl: str,
) -> Tensor:
    """Choose and run an implementation.

    tokens (B, T, 3, heads, E), bias (heads, n, n) or the table (R, heads) with pairs (n, n), index and labels (G, n),
    pad (3, heads, E) -> (B, T, heads, E).
    """
    scale = tokens.shape[-1] ** -0.5 if scale is None else scale
    grad = torch.is_grad_enabled() and (tokens.requires_grad or bias.requires_grad)
    chosen = DISPATCH.choose(situation(tokens, length=index.shape[1], needs_grad=grad), impl)
    pad = None if pad is None else pad.to(tokens.dtype)
    if chosen == "reference":
        return _reference(tokens, _expand(bias, pairs), index, labels, pad, scale)
    return window_attention_op(tokens, bias, pairs, index, labels, pad, scale, chosen == "triton")[0]


def _reference(
    tokens: Tensor, bias: Tensor, index: Tensor, labels: Tensor | None, pad: Tensor | None, scale: float
) -> Tensor:
    """All windows at once with plain autograd; O(G n^2) memory."""
    batch, length = tokens.shape[:2]
    empty = torch.zeros_like(tokens[0, 0]) if pad is None else pad
    padded = torch.cat([tokens, empty.expand(batch, 1, *empty.shape)], 1)  # index -1 finds the last row
    q, k, v = rearrange(padded[:, index.long()], "b g n s h e -> s b g h n e")
    scores = scale * (q @ k.transpose(-2, -1)) + bias
    if labels is not None:
        scores = scores.masked_fill((labels[:, :, None] != labels[:, None, :])[:, None], -torch.inf)
    out = rearrange(scores.softmax(-1).to(v.dtype) @ v, "b g h n e -> b (g n) h e")
    inside = index.flatten() >= 0
    place = torch.empty(length, dtype=torch.long, device=index.device)
    place[index.flatten()[inside].long()] = torch.arange(index.numel(), device=index.device)[inside]
    return out[:, place]


@torch.library.custom_op("mm::window_attention", mutates_args=())
def window_attention_op(
    tokens: Tensor,
    bias: Tensor,
    pairs: Tensor | None,
    index: Tensor,
    labels: Tensor | None,
    pad: Tensor | None,
    scale: float,
    triton: bool,
) -> tuple[Tensor, Tensor]:
    """(out (B, T, heads, E), lse (B, G, heads, n)); arguments as in `_attend`."""
    if triton:
        from mm.kernels.window_attention_triton import forward

        return forward(tokens, bias, pairs, index, labels, pad, scale)
    batch, length, _, heads, size = tokens.shape
    groups, n = index.shape
    full_bias = _expand(bias, pairs)
    out = tokens.new_empty(batch * length + 1, heads, size)  # the last row takes what lies beyond the border
    lse = torch.empty(batch * groups, heads, n, dtype=bias.dtype, device=bias.device)
    for ids, places, pair_bias in _blocks(tokens, full_bias, index, labels):
        q, k, v = _gather(tokens, places, pad)
        block, lse[ids] = _softmax_attention(q, k, v, pair_bias, scale)
        out[places.flatten()] = rearrange(block, "g h n e -> (g n) h e").to(out.dtype)
    return out[:-1].view(batch, length, heads, size), lse.view(batch, groups, heads, n)


@window_attention_op.register_fake
def _(tokens, bias, pairs, index, labels, pad, scale, triton):  # type: ignore[no-untyped-def]
    batch, length, _, heads, size = tokens.shape
    lse = bias.new_empty(batch, index.shape[0], heads, index.shape[1])
    return tokens.new_empty(batch, length, heads, size), lse


@torch.library.custom_op("mm::window_attention_backward", mutates_args=())
def window_attention_backward_op(
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
    triton: bool,
    with_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of tokens, of bias or table (empty without `with_bias`), and of pad (3, heads, E)."""
    if triton:
        from mm.kernels.window_attention_triton import backward

        return backward(grad, tokens, bias, pairs, index, labels, pad, out, lse, scale, with_bias)
    batch, length, _, heads, size = tokens.shape
    full_bias = _expand(bias, pairs)
    d_tokens = tokens.new_empty(batch * length + 1, 3, heads, size)
    d_bias = torch.zeros_like(full_bias, memory_format=torch.contiguous_format)
    d_pad = bias.new_zeros(3, heads, size)
    lse, grad, out = lse.flatten(0, 1), grad.flatten(0, 1), out.flatten(0, 1)
    for ids, places, pair_bias in _blocks(tokens, full_bias, index, labels):
        q, k, v = _gather(tokens, places, pad)
        d_out, block_out = (_gather_rows(x, places, bias.dtype) for x in (grad, out))
        d_q, d_k, d_v, d_scores = _softmax_backward(d_out, q, k, v, block_out, lse[ids], pair_bias, scale)
        block = rearrange([d_q, d_k, d_v], "s g h n e -> (g n) s h e")
        d_tokens[places.flatten()] = block.to(d_tokens.dtype)
        if with_bias:
            d_bias += d_scores.sum(0)
        if pad is not None:
            d_pad += block[places.flatten() < 0].sum(0)
    if not with_bias:
        d_bias = bias.new_empty(0)
    elif pairs is not None:  # not index_add_, whose order is not fixed on GPUs
        d_bias = torch.zeros_like(bias).index_put_((pairs,), rearrange(d_bias, "h i j -> i j h"), accumulate=True)
    return d_tokens[:-1].view(tokens.shape), d_bias, d_pad.to(tokens.dtype)


@window_attention_backward_op.register_fake
def _(grad, tokens, bias, pairs, index, labels, pad, out, lse, scale, triton, with_bias):  # type: ignore[no-untyped-def]
    empty = tokens.new_empty(3, *tokens.shape[3:])
    return tokens.new_empty(tokens.shape), bias.new_empty(bias.shape if with_bias else 0), empty


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    *tensors, ctx.scale, ctx.triton = inputs
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    *tensors, out, lse = ctx.saved_tensors
    with_bias = ctx.needs_input_grad[1]
    d_tokens, d_bias, d_pad = window_attention_backward_op(grad, *tensors, out, lse, ctx.scale, ctx.triton, with_bias)
    has_pad = tensors[5] is not None
    return d_tokens, d_bias if with_bias else None, None, None, None, d_pad if has_pad else None, None, None


window_attention_op.register_autograd(_backward, setup_context=_setup)


@register_flop_formula(torch.ops.mm.window_attention)
def _forward_flops(tokens, bias, pairs, index, *args, **kwargs):  # type: ignore[no-untyped-def]
    batch, _, _, heads, size = tokens
    return 4 * batch * index[0] * heads * index[1] ** 2 * size


@register_flop_formula(torch.ops.mm.window_attention_backward)
def _backward_flops(grad, tokens, bias, pairs, index, *args, **kwargs):  # type: ignore[no-untyped-def]
    batch, _, _, heads, size = tokens
    return 10 * batch * index[0] * heads * index[1] ** 2 * size


def _expand(bias: Tensor, pairs: Tensor | None) -> Tensor:
    """The bias of all pairs, (heads, n, n)."""
    return bias if pairs is None else rearrange(bias[pairs], "i j h -> h i j")


def _blocks(
    tokens: Tensor, bias: Tensor, index: Tensor, labels: Tensor | None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Window numbers (g), their token rows in the flattened batch (g, n) and their masked bias (heads, n, n).

    Windows with the same labels share one masked bias: the shift of a volume makes at most eight such patterns.
    """
    batch, length = tokens.shape[:2]
    groups = len(index)
    shift = torch.arange(batch, device=index.device)[:, None, None] * length
    rows = torch.where(index < 0, -1, index + shift).flatten(0, 1)  # (B G, n)
    room = BLOCK_BYTES.get(tokens.device.type, BLOCK_BYTES["cuda"])
    at_once = max(1, room // (bias.numel() * bias.element_size()))
    every = torch.arange(batch * groups, device=index.device)
    if labels is None:
        patterns, kind = [None], torch.zeros(groups, dtype=torch.long, device=index.device)
    else:
        patterns, kind = labels.unique(dim=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        pair_bias = bias
        if pattern is not None:
            pair_bias = bias.masked_fill(pattern[:, None] != pattern[None, :], -torch.inf)
        for ids in every[(kind == number).repeat(batch)].split(at_once):
            yield ids, rows[ids], pair_bias


def _gather_rows(x: Tensor, places: Tensor, dtype: torch.dtype) -> Tensor:
    """x (B T, heads, E) at places (g, n), zero beyond the border -> (g, heads, n, E)."""
    rows = x[places.clamp(min=0)].to(dtype)
    return rearrange(rows.masked_fill_((places < 0)[..., None, None], 0), "g n h e -> g h n e")


def _gather(tokens: Tensor, places: Tensor, pad: Tensor | None) -> Tensor:
    """tokens (B, T, 3, heads, E) at places (g, n) -> (3, g, heads, n, E) in float32 at least."""
    rows = tokens.flatten(0, 1)[places.clamp(min=0)]  # (g, n, 3, heads, E)
    rows[places < 0] = 0 if pad is None else pad
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return rearrange(rows, "g n s h e -> s g h n e")


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Output (g, heads, n, E) and log-sum-exp (g, heads, n) of a block of windows."""
    if q.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=bias[None], scale=scale)
    scores = scale * (q @ k.transpose(-2, -1)) + bias
    lse = scores.logsumexp(-1)
    return (scores - lse[..., None]).exp_() @ v, lse


def _softmax_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bias: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v (g, heads, n, E) and of the scores (g, heads, n, n).

    An extra channel lets the products themselves subtract: [s q, -lse] [k, 1]^T + bias = scores - lse, and
    [d_out, -delta] [v, 1]^T = d_p - delta. That spares two passes over the n x n blocks.
    """
    one = torch.ones_like(lse)[..., None]
    delta = (d_out * out).sum(-1, keepdim=True)
    q_lse, k_one = torch.cat([scale * q, -lse[..., None]], -1), torch.cat([k, one], -1)
    g_delta, v_one = torch.cat([d_out, -delta], -1), torch.cat([v, one], -1)
    p = bias.repeat(len(q), 1, 1).baddbmm_(q_lse.flatten(0, 1), k_one.flatten(0, 1).mT).exp_().view(*q.shape[:3], -1)
    d_v = p.mT @ d_out
    d_scores = p.mul_(g_delta @ v_one.mT)
    d_q = scale * (d_scores @ k)
    d_k = d_scores.mT @ q_lse[..., :-1]
    return d_q, d_k, d_v, d_scores
