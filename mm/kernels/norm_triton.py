"""Modulated norm in one pass over memory: a program holds one row in registers, in float32.

Forward reads x, residual, dscale, dshift and writes y and the sum; backward reads dy, the sum, dscale and writes the
gradients; nothing is read twice. Sums over rows (gradient of weight and bias) are partial sums per program, added in a
fixed order. Dims: R rows, D width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mm.kernels.dispatch import triton_is_interpreted

PROGRAMS_PER_PROCESSOR = 2
"""Programs of a backward pass that sums over rows, per streaming multiprocessor."""
BACKWARD_STAGES = 2
"""Rows that such a program has under way: one is read while the one before is computed."""


@triton.jit
def _forward_kernel(
    x, residual, weight, bias, dscale, dshift, keep, y, total, mean, scale, D, eps,
    BLOCK: tl.constexpr, LAYER: tl.constexpr, CAST: tl.constexpr, RESIDUAL: tl.constexpr, WEIGHT: tl.constexpr,
    BIAS: tl.constexpr, DSCALE: tl.constexpr, DSHIFT: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    inside = lane < D
    at = row * D + lane
    low = x.dtype.element_ty
    s = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if RESIDUAL:
        s = (s + tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)).to(low)
        tl.store(total + at, s, mask=inside)
        s = s.to(tl.float32)
    if LAYER:
        centre = tl.sum(s, 0) / D
        tl.store(mean + row, centre)
        s = tl.where(inside, s - centre, 0.0)
    r = tl.rsqrt(tl.sum(s * s, 0) / D + eps)
    tl.store(scale + row, r)
    normed = s * r
    out = normed
    if CAST == "llama":
        out = out.to(low).to(tl.float32)
    if WEIGHT:
        w = tl.load(weight + lane, mask=inside, other=0.0).to(tl.float32)
        if CAST == "gemma":
            w += 1.0
        out = out * w
    if BIAS:
        b = tl.load(bias + lane, mask=inside, other=0.0).to(tl.float32)
        if LAYER:
            out += b
        else:
            out = out.to(y.dtype.element_ty).to(tl.float32) + b
    out = out.to(y.dtype.element_ty).to(tl.float32)  # the base norm, rounded as its model rounds it
    changed = inside
    if KEEP:
        changed = inside & (tl.load(keep + row) != 0)
    if DSCALE:
        out += tl.load(dscale + at, mask=changed, other=0.0).to(tl.float32) * normed
    if DSHIFT:
        out += tl.load(dshift + at, mask=changed, other=0.0).to(tl.float32)
    tl.store(y + at, out.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kernel(
    dy, dtotal, total, mean, scale, weight, dscale, keep, ds, ddscale, dweight, dbias, rows, D,
    BLOCK: tl.constexpr, LAYER: tl.constexpr, GEMMA: tl.constexpr, DTOTAL: tl.constexpr, WEIGHT: tl.constexpr,
    DSCALE: tl.constexpr, KEEP: tl.constexpr, DWEIGHT: tl.constexpr, DBIAS: tl.constexpr, STAGES: tl.constexpr,
    TRIPS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    if WEIGHT:
        w = tl.load(weight + lane, mask=lane < D, other=0.0).to(tl.float32)
        if GEMMA:
            w += 1.0
    weight_sum = tl.zeros((BLOCK,), tl.float32)
    bias_sum = tl.zeros((BLOCK,), tl.float32)
    # The interpreter needs a trip count known in advance.
    for trip in tl.range(0, TRIPS if TRIPS > 0 else tl.cdiv(rows, tl.num_programs(0)), num_stages=STAGES):
        row = (trip * tl.num_programs(0) + program).to(tl.int64)
        inside = (lane < D) & (row < rows)
        at = row * D + lane
        grad = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        s = tl.load(total + at, mask=inside, other=0.0).to(tl.float32)
        r = tl.load(scale + row, mask=row < rows, other=0.0)
        if LAYER:
            s = tl.where(inside, s - tl.load(mean + row, mask=row < rows, other=0.0), 0.0)
        normed = s * r
        g = grad
        if WEIGHT:
            g = grad * w
        if DSCALE:
            changed = inside
            if KEEP:
                changed = inside & (tl.load(keep + row, mask=row < rows, other=0) != 0)
            g += grad * tl.load(dscale + at, mask=changed, other=0.0).to(tl.float32)
            outer = tl.where(changed, grad * normed, 0.0)
            tl.store(ddscale + at, outer.to(ddscale.dtype.element_ty), mask=inside)
        result = g - normed * (tl.sum(g * normed, 0) / D)
        if LAYER:
            result -= tl.sum(g, 0) / D
        result *= r
        if DTOTAL:
            result += tl.load(dtotal + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(ds + at, result.to(ds.dtype.element_ty), mask=inside)
        if DWEIGHT:
            weight_sum += grad * normed
        if DBIAS:
            bias_sum += grad
    if DWEIGHT:
        tl.store(dweight + program * D + lane, weight_sum, mask=lane < D)
    if DBIAS:
        tl.store(dbias + program * D + lane, bias_sum, mask=lane < D)


def forward_triton(
    x, residual, weight, bias, dscale, dshift, keep, kind, eps, cast, dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `mm.kernels.norm._modulated_norm`; `dtype` is that of y."""
    x, residual, dscale, dshift, keep = (_contiguous(t) for t in (x, residual, dscale, dshift, keep))
    width, rows = x.shape[-1], x.numel() // max(1, x.shape[-1])
    layer = kind == "layer"
    y = torch.empty_like(x, dtype=dtype)
    total = x.new_empty(0) if residual is None else torch.empty_like(x)
    mean = x.new_empty(x.shape[:-1] if layer else (0,), dtype=torch.float32)
    scale = x.new_empty(x.shape[:-1], dtype=torch.float32)
    block = triton.next_power_of_2(width)
    if rows:
        _forward_kernel[(rows,)](
            x, residual, weight, bias, dscale, dshift, keep, y, total, mean, scale, width, eps,
            BLOCK=block, LAYER=layer, CAST=cast, RESIDUAL=residual is not None, WEIGHT=weight is not None,
            BIAS=bias is not None, DSCALE=dscale is not None, DSHIFT=dshift is not None, KEEP=keep is not None,
            num_warps=_warps(block),
        )  # fmt: skip
    return y, total, mean, scale


def backward_triton(dy, dtotal, total, mean, scale, weight, dscale, keep, cast, wants_weight, wants_bias):
    """See `mm.kernels.norm._backward`."""
    dy, dtotal, total, dscale, keep = (_contiguous(t) for t in (dy, dtotal, total, dscale, keep))
    width, rows = total.shape[-1], total.numel() // max(1, total.shape[-1])
    # One row each, unless sums over rows are wanted: then enough programs to fill the device, but few partial sums.
    summed = wants_weight or wants_bias
    programs = min(rows, PROGRAMS_PER_PROCESSOR * _processors(total.device)) if summed else rows
    ds = torch.empty_like(total)
    ddscale = total.new_empty(0) if dscale is None else torch.empty_like(dscale)
    dweight = total.new_empty((programs, width) if wants_weight else (0,), dtype=torch.float32)
    dbias = total.new_empty((programs, width) if wants_bias else (0,), dtype=torch.float32)
    block = triton.next_power_of_2(width)
    if rows:
        _backward_kernel[(programs,)](
            dy, dtotal, total, mean, scale, weight, dscale, keep, ds, ddscale, dweight, dbias, rows, width,
            BLOCK=block, LAYER=mean.numel() > 0, GEMMA=cast == "gemma", DTOTAL=dtotal is not None,
            WEIGHT=weight is not None, DSCALE=dscale is not None, KEEP=keep is not None,
            DWEIGHT=wants_weight, DBIAS=wants_bias, STAGES=BACKWARD_STAGES if summed else 1,
            TRIPS=triton.cdiv(rows, programs) if triton_is_interpreted() else 0, num_warps=_warps(block),
        )  # fmt: skip
    dweight = dweight.sum(0).to(weight.dtype) if wants_weight else dweight
    return ds, ddscale, dweight, dbias.sum(0) if wants_bias else dbias


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _warps(block: int) -> int:
    return min(16, max(1, block // 512))


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
