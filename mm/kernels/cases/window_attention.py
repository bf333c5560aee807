"""Contests of 3-D window attention: the attention branch of MONAI's block, and the attention alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mm.extras import require
from mm.kernels.bench import Case, Contest, Target
from mm.kernels.window_attention import shifted_window_attention, window_attention_3d
from mm.kernels.windows import Size3, relative_position_bias, window_layout

SHAPES: dict[str, tuple[int, Size3, Size3, int, int]] = {
    "VELVET-Med Sv stage 1": (10, (48, 48, 48), (7, 7, 7), 4, 12),
    "VELVET-Med Sv stage 2": (10, (24, 24, 24), (7, 7, 7), 8, 12),
    "VELVET-Med Sv stage 4": (10, (6, 6, 6), (7, 7, 7), 32, 12),
    "E-ViLM 30m stage 1, 4 frames": (20, (4, 56, 56), (8, 7, 7), 2, 32),
}
"""Samples per GPU in the published training (one on a CPU), volume in tokens, window, heads, head size."""


def cases() -> list[Case]:
    """One MONAI contest and one of the attention alone per shape; odd blocks, which are the shifted ones."""
    made, kernel = [], "window_attention_3d"
    for name in SHAPES:
        alone = {"cuda": (Target(kind="speedup", limit=3.0, peer="eager"),)}
        made.append(
            Case(
                kernel=kernel,
                shape=f"{name}, attention alone",
                build=partial(_alone, name),
                targets=alone,
            )
        )
        if find_spec("monai"):
            against = {
                "cpu": (Target(kind="speedup", limit=1.0, peer="MONAI block"),),
                "cuda": (Target(kind="speedup", limit=3.0, peer="MONAI block"),),
            }
            made.append(Case(kernel=kernel, shape=f"{name}, block", build=partial(_block, name), targets=against))
    return made


def _cost(name: str, batch: int, element_size: int) -> tuple[float, float]:
    """Least bytes and FLOPs of forward and backward."""
    _, dims, window, heads, size = SHAPES[name]
    layout = window_layout(dims, window, (0, 0, 0), torch.device("cpu"))
    groups, n = layout.index.shape
    tokens = batch * dims[0] * dims[1] * dims[2] * heads * size
    return 12.0 * tokens * element_size, 14.0 * batch * groups * heads * n * n * size  # qkv, out, twice with gradients


def _dtype(device: str) -> torch.dtype:
    return torch.bfloat16 if device == "cuda" else torch.float32


def _alone(name: str, device: str) -> Contest:
    """Forward and backward from the projection to the heads' output, shifted."""
    samples, dims, window, heads, size = SHAPES[name]
    batch, dtype = samples if device == "cuda" else 1, _dtype(device)
    shift: Size3 = tuple(w // 2 for w in window)  # type: ignore[assignment]
    rng = torch.Generator().manual_seed(0)
    qkv = torch.randn(batch, *dims, 3 * heads * size, generator=rng).to(device, dtype).requires_grad_()
    rows = (2 * window[0] - 1) * (2 * window[1] - 1) * (2 * window[2] - 1)
    table = torch.randn(rows, heads, generator=rng).to(device).requires_grad_()
    grad = torch.randn(batch, *dims, heads * size, generator=rng).to(device, dtype)
    pad = torch.zeros(3 * heads * size, device=device, dtype=dtype)

    def ours() -> None:
        _both_ways(
            shifted_window_attention(qkv, num_heads=heads, window=window, shift=shift, table=table, pad=pad),
            grad, (qkv, table),
        )  # fmt: skip

    layout = window_layout(dims, window, shift, torch.device(device))
    inside = rearrange(_cut(qkv.detach(), layout.index, heads), "s g h n e -> s (g) h n e")
    windowed = [x.contiguous().requires_grad_() for x in inside]
    window_grad = torch.randn(windowed[0].shape, generator=rng).to(device, dtype)

    def ready_made(attend: Callable[..., Tensor]) -> Callable[[], None]:
        def run() -> None:
            bias = relative_position_bias(table, layout.window, window)
            _both_ways(attend(*windowed, bias, layout.labels), window_grad, (*windowed, table))

        return run

    peers = {"eager": ready_made(_eager), "SDPA, expanded bias": ready_made(_sdpa)}
    peers["ours, windows cut out before"] = ready_made(
        lambda q, k, v, bias, labels: window_attention_3d(q, k, v, window=layout.window, bias=bias, labels=labels)
    )
    if device == "cuda":
        peers["FlexAttention"] = ready_made(_flex())
    moved, flops = _cost(name, batch, qkv.element_size())
    return Contest(ours=ours, peers=peers, bytes=moved, flops=flops, matmul=str(dtype).removeprefix("torch."))


def _both_ways(out: Tensor, grad: Tensor, inputs: tuple[Tensor, ...]) -> None:
    torch.autograd.grad(out, inputs, grad)


def _cut(qkv: Tensor, index: Tensor, heads: int) -> Tensor:
    """(B, D, H, W, 3 C) -> windows of all samples, (3, B G, heads, n, E), zeros beyond the border."""
    flat = F.pad(rearrange(qkv, "b d x y c -> b (d x y) c"), (0, 0, 0, 1))
    return rearrange(flat[:, index.long()], "b g n (s h e) -> s (b g) h n e", s=3, h=heads)


def _masked(bias: Tensor, labels: Tensor | None, windows: int, dtype: torch.dtype) -> Tensor:
    """Bias and shift mask written out for every window, (windows, heads, n, n)."""
    if labels is None:
        return bias.to(dtype).expand(windows, *bias.shape)
    closed = (labels[:, :, None] != labels[:, None, :]) * -100.0
    return (bias + closed[:, None]).to(dtype).repeat(windows // len(labels), 1, 1, 1)


def _eager(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, labels: Tensor | None) -> Tensor:
    """What Swin implementations write, MONAI's included; scores and softmax in bias precision."""
    scores = (q * q.shape[-1] ** -0.5) @ k.mT + bias
    if labels is not None:
        closed = (labels[:, :, None] != labels[:, None, :]) * -100.0
        scores = (scores.unflatten(0, (-1, len(labels))) + closed[:, None]).flatten(0, 1)
    return scores.softmax(-1).to(v.dtype) @ v


def _sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, labels: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=_masked(bias, labels, len(q), q.dtype))


def _flex() -> Callable[..., Tensor]:
    """Windows as the batch; bias and labels read inside the kernel."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Any = torch.compile(flex_attention, dynamic=False)

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, labels: Tensor | None) -> Tensor:
        groups = 1 if labels is None else len(labels)

        def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            s = s + bias[h, i, j]
            return s if labels is None else torch.where(labels[b % groups, i] == labels[b % groups, j], s, -1e30)

        return compiled(q, k, v, score_mod=score)

    return attend


def _block(name: str, device: str) -> Contest:
    """Norm, projections and attention of MONAI's shifted block, forward and backward; bf16 autocast on CUDA."""
    from mm.kernels.monai_swin import replace_window_attention

    swin = require("monai.networks.nets.swin_unetr", extra="medical", purpose="Comparing with MONAI's block")

    samples, dims, window, heads, size = SHAPES[name]
    torch.manual_seed(0)
    shift = tuple(w // 2 for w in window)
    theirs, fused = (swin.SwinTransformerBlock(heads * size, heads, window, shift).to(device) for _ in range(2))
    fused.load_state_dict(theirs.state_dict())
    replace_window_attention(fused)
    used, moved_by = swin.get_window_size(dims, window, shift)
    padded = [-(-d // w) * w for d, w in zip(dims, used, strict=True)]
    mask = swin.compute_mask(padded, used, moved_by, device)
    x = torch.randn(samples if device == "cuda" else 1, *dims, heads * size, device=device, requires_grad=True)
    grad = torch.randn_like(x)

    def run(block: torch.nn.Module) -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            out = block.forward_part1(x, mask)  # type: ignore[operator]
        inputs = [x, *(p for part in (block.norm1, block.attn) for p in part.parameters())]  # type: ignore[union-attr]
        torch.autograd.grad(out, inputs, grad.to(out.dtype))

    moved, flops = _cost(name, len(x), _dtype(device).itemsize)
    flops += 24.0 * x.numel() * x.shape[-1]  # the two projections, forward and backward
    return Contest(
        ours=lambda: run(fused),
        peers={"MONAI block": lambda: run(theirs)},
        bytes=moved,
        flops=flops,
        matmul=str(_dtype(device)).removeprefix("torch."),
    )
