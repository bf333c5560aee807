"""Normalisation with token-wise additive changes of scale and shift, fused with the residual sum.

    s = x + residual                     xh = (s - mean s) / sqrt(var s + eps)   or   s / sqrt(mean s^2 + eps)
    y = base_norm(s) + dscale * xh + dshift

Source: LaVi (vision-infused layer normalisation), where a conditioner gives `dscale` and `dshift` per token. The base
norm is formed in its own rounding order and the change is added in float32, so a zero change leaves the language
model's numbers alone; weight + dscale is never formed in low precision.
Dims: D width; "rows" are all leading dims together.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mm.kernels.dispatch import Candidate, Dispatcher, needs_triton, situation

CASTS = {"rms": ("llama", "gemma", "single"), "layer": ("single",)}

DISPATCH = Dispatcher(
    "modulated_norm",
    Candidate(
        "triton",
        "one pass over memory",
        lambda s: needs_triton(s) or (f"width {s.head_dim} is above 16384" if s.head_dim > 16384 else None),
        lambda s: f"{s.length} rows are few, torch's order of summation is kept" if s.length < 4096 else None,
    ),
    Candidate("reference", "torch's own order of operations, bit-equal to the base norm at zero change"),
)


def modulated_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    dscale: Tensor | None,
    dshift: Tensor | None,
    *,
    kind: str = "rms",
    residual: Tensor | None = None,
    eps: float = 1e-6,
    cast: str | None = None,
    keep: Tensor | None = None,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """RMSNorm or LayerNorm plus a change of scale and shift for every token.

    Args:
        x: Branch output or hidden states, (..., D).
        weight: Scale of the base norm, (D), or None for 1 (with cast="gemma" the stored weight w of 1 + w).
        bias: Shift of the base norm, (D), or None.
        dscale: Change of the scale, shape of `x`, or None for none.
        dshift: Change of the shift, shape of `x`, or None for none.
        kind: "rms" or "layer".
        residual: Added to `x` before the norm, shape and dtype of `x`.
        eps: Added to the mean square or the variance.
        cast: Where the base norm rounds: "llama" (normalised rows to the input dtype, then times weight), "gemma"
            (times 1 + weight in float32, then cast), "single" (all in float32, then cast; torch's own norms).
            Default: "llama" for "rms", "single" for "layer".
        keep: Rows that are changed, bool (...) without D; False rows get the base norm exactly, whatever (even NaN)
            stands in their deltas. Default: all.
        impl: "auto", "triton" or "reference". "reference" is bit-equal to the base norm where the change is zero;
            "triton" sums in another order and may differ in the last bit of a few elements.

    Returns:
        y, shape of `x`, in the dtype the base norm gives; with `residual` also the sum s in the dtype of `x`.

    Raises:
        ValueError: shapes that do not fit, an unknown kind or cast, or an implementation that cannot run here.

    Example:
        >>> x = torch.tensor([[3.0, 4.0]])
        >>> bool(torch.equal(modulated_norm(x, None, None, None, None), F.rms_norm(x, (2,), eps=1e-6)))
        True
    """
    cast = cast or ("llama" if kind == "rms" else "single")
    _check(x, weight, bias, dscale, dshift, residual, keep, kind, cast)
    y, total, _, _ = _modulated_norm(x, residual, weight, bias, dscale, dshift, keep, kind, eps, cast, impl)
    return y if residual is None else (y, total)


def _check(x, weight, bias, dscale, dshift, residual, keep, kind, cast) -> None:
    if kind not in CASTS:
        raise ValueError(f"unknown kind {kind!r}; choose {' or '.join(CASTS)}")
    if cast not in CASTS[kind]:
        raise ValueError(f"cast {cast!r} does not exist for kind {kind!r}; choose {', '.join(CASTS[kind])}")
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None and vector.shape != x.shape[-1:]:
            raise ValueError(f"{name} must have shape ({x.shape[-1]},), got {tuple(vector.shape)}")
    for name, tensor in (("dscale", dscale), ("dshift", dshift), ("residual", residual)):
        if tensor is not None and tensor.shape != x.shape:
            raise ValueError(f"{name} must have the shape of x, {tuple(x.shape)}, got {tuple(tensor.shape)}")
    if residual is not None and residual.dtype != x.dtype:
        raise ValueError(f"residual must have the dtype of x, {x.dtype}, got {residual.dtype}")
    if keep is not None and (keep.dtype != torch.bool or keep.shape != x.shape[:-1]):
        raise ValueError(f"keep must be bool {tuple(x.shape[:-1])}, got {keep.dtype} {tuple(keep.shape)}")


@torch.library.custom_op("mm::modulated_norm", mutates_args=())
def _modulated_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    dscale: Tensor | None,
    dshift: Tensor | None,
    keep: Tensor | None,
    kind: str,
    eps: float,
    cast: str,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, the residual sum (empty without residual), mean (empty for rms) and 1 / deviation of each row."""
    where = situation(x, length=x.numel() // max(1, x.shape[-1]), needs_grad=False)
    if DISPATCH.choose(where, impl) == "triton":
        from mm.kernels.norm_triton import forward_triton

        dtype = out_dtype(x, weight, cast)
        return forward_triton(x, residual, weight, bias, dscale, dshift, keep, kind, eps, cast, dtype)
    total = x if residual is None else x + residual
    normed, mean, scale = _normalise(total, kind, eps)
    y = _base_norm(total, normed, weight, bias, kind, eps, cast)
    change = _change(normed, dscale, dshift, keep)
    if change is not None:
        y = (y.to(normed.dtype) + change).to(y.dtype)
    return (y.clone() if y is x else y), (x.new_empty(0) if residual is None else total), mean, scale


def out_dtype(x: Tensor, weight: Tensor | None, cast: str) -> torch.dtype:
    """Dtype of the base norm's result: the "llama" order multiplies by the weight last and so may widen it."""
    return torch.promote_types(x.dtype, weight.dtype) if cast == "llama" and weight is not None else x.dtype


def _normalise(total: Tensor, kind: str, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised rows in the statistics dtype, their mean (empty for rms) and 1 / deviation."""
    wide = total.to(torch.float64 if total.dtype == torch.float64 else torch.float32)
    mean = wide.new_empty(0)
    if kind == "layer":
        centre = wide.mean(-1, keepdim=True)
        wide, mean = wide - centre, centre.squeeze(-1)
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return wide * scale, mean, scale.squeeze(-1)


def _base_norm(
    total: Tensor, normed: Tensor, weight: Tensor | None, bias: Tensor | None, kind: str, eps: float, cast: str
) -> Tensor:
    """The norm without any change, in the rounding order that its model uses."""
    width = total.shape[-1:]
    if kind == "layer":
        weight, bias = (None if t is None else t.to(total.dtype) for t in (weight, bias))
        return F.layer_norm(total, width, weight, bias, eps)
    if cast == "single":
        y = F.rms_norm(total, width, None if weight is None else weight.to(total.dtype), eps)
    elif cast == "gemma":
        y = (normed if weight is None else normed * (1.0 + weight.to(normed.dtype))).to(total.dtype)
    else:
        y = normed.to(total.dtype)
        y = y if weight is None else weight * y
    return y if bias is None else y + bias.to(y.dtype)


def _change(normed: Tensor, dscale: Tensor | None, dshift: Tensor | None, keep: Tensor | None) -> Tensor | None:
    """dscale * xh + dshift in the statistics dtype, zero in rows that are not kept; None if there is no change."""
    parts = []
    if dscale is not None:
        parts.append(dscale.to(normed.dtype) * normed)
    if dshift is not None:
        parts.append(dshift.to(normed.dtype))
    if not parts:
        return None
    change = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    return change if keep is None else change.masked_fill(~keep[..., None], 0)


@_modulated_norm.register_fake
def _(x, residual, weight, bias, dscale, dshift, keep, kind, eps, cast, impl):
    stat = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows = x.shape[:-1]
    y = torch.empty_like(x, dtype=out_dtype(x, weight, cast))
    total = x.new_empty(0) if residual is None else torch.empty_like(x)
    return y, total, x.new_empty(rows if kind == "layer" else (0,), dtype=stat), x.new_empty(rows, dtype=stat)


@torch.library.custom_op("mm::modulated_norm_backward", mutates_args=())
def _backward(
    dy: Tensor,
    dtotal: Tensor | None,
    total: Tensor,
    mean: Tensor,
    scale: Tensor,
    weight: Tensor | None,
    dscale: Tensor | None,
    keep: Tensor | None,
    cast: str,
    wants_weight: bool,
    wants_bias: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the normalised stream, of dscale, of the weight and of the bias; unwanted ones are empty.

    With g = dy (weight + dscale): ds = (g - xh mean(g xh) [- mean g]) / deviation + the gradient of the stream.
    """
    if impl == "triton":
        from mm.kernels.norm_triton import backward_triton

        return backward_triton(dy, dtotal, total, mean, scale, weight, dscale, keep, cast, wants_weight, wants_bias)
    wide = total.to(scale.dtype)
    layer = mean.numel() > 0
    normed = (wide - mean[..., None] if layer else wide) * scale[..., None]
    grad = dy.to(scale.dtype)
    g = grad if weight is None else grad * (weight.to(scale.dtype) + (1.0 if cast == "gemma" else 0.0))
    ddscale = total.new_empty(0)
    if dscale is not None:
        extra = grad * dscale.to(scale.dtype)
        ddscale = grad * normed
        if keep is not None:
            extra, ddscale = (t.masked_fill(~keep[..., None], 0) for t in (extra, ddscale))
        g, ddscale = g + extra, ddscale.to(dscale.dtype)
    ds = g - normed * (g * normed).mean(-1, keepdim=True)
    if layer:
        ds = ds - g.mean(-1, keepdim=True)
    ds = ds * scale[..., None]
    if dtotal is not None:
        ds = ds + dtotal
    leading = tuple(range(dy.ndim - 1))
    dweight = (
        (grad * normed).sum(leading).to(weight.dtype) if weight is not None and wants_weight else total.new_empty(0)
    )
    dbias = grad.sum(leading) if wants_bias else total.new_empty(0)
    return ds.to(total.dtype), ddscale, dweight, dbias


@_backward.register_fake
def _(dy, dtotal, total, mean, scale, weight, dscale, keep, cast, wants_weight, wants_bias, impl):
    none = total.new_empty(0)
    return (
        torch.empty_like(total, memory_format=torch.contiguous_format),
        none if dscale is None else torch.empty_like(dscale, memory_format=torch.contiguous_format),
        torch.empty_like(weight) if wants_weight else none.clone(),
        scale.new_empty(dy.shape[-1]) if wants_bias else none.clone(),
    )


def _save(ctx, inputs, output) -> None:
    x, residual, weight, bias, dscale, dshift, keep, _, _, ctx.cast, impl = inputs
    _, total, mean, scale = output
    ctx.save_for_backward(x if residual is None else total, mean, scale, weight, dscale, keep)
    ctx.residual, ctx.dshift = residual is not None, None if dshift is None else dshift.dtype
    ctx.bias = None if bias is None else bias.dtype
    where = situation(x, length=x.numel() // max(1, x.shape[-1]), needs_grad=True)
    ctx.impl = DISPATCH.choose(where, impl)


def _backward_of_all(ctx, dy, dtotal, _mean, _scale):
    total, mean, scale, weight, dscale, keep = ctx.saved_tensors
    dtotal = dtotal if ctx.residual else None
    needs_weight, needs_bias, needs_dshift = ctx.needs_input_grad[2], ctx.needs_input_grad[3], ctx.needs_input_grad[5]
    ds, ddscale, dweight, dbias = torch.ops.mm.modulated_norm_backward(
        dy, dtotal, total, mean, scale, weight, dscale, keep, ctx.cast, needs_weight, needs_bias, ctx.impl
    )
    ddshift = None
    if needs_dshift:  # the gradient of the shift is dy itself: nothing is written for it
        ddshift = (dy if keep is None else dy.masked_fill(~keep[..., None], 0)).to(ctx.dshift)
    return (
        ds,
        ds if ctx.residual else None,
        dweight if needs_weight else None,
        dbias.to(ctx.bias) if needs_bias else None,
        ddscale if dscale is not None else None,
        ddshift,
        *[None] * 5,
    )


torch.library.register_autograd("mm::modulated_norm", _backward_of_all, setup_context=_save)


@register_flop_formula(torch.ops.mm.modulated_norm)
def _flops(x_shape, *args, out_shape=None, **kwargs) -> int:
    rows = 1
    for size in x_shape[:-1]:
        rows *= size
    return 8 * rows * x_shape[-1]
