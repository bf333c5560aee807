"""The modulated norm: bit-equal to its base at zero change, right everywhere else, with a closed-form backward."""

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from mm.kernels import modulated_norm
from mm.kernels.measure import peak_bytes

KINDS = [("rms", "llama"), ("rms", "gemma"), ("rms", "single"), ("layer", "single")]


def base(kind, cast, weight, bias, eps=1e-6):
    """The norm that a model would use."""
    width = len(weight)
    if kind == "layer":
        return lambda s: F.layer_norm(s, (width,), weight, bias, eps)
    if cast == "single":
        return lambda s: F.rms_norm(s, (width,), weight, eps)
    module = (LlamaRMSNorm if cast == "llama" else GemmaRMSNorm)(width, eps).to(weight.dtype)
    module.weight.data.copy_(weight)
    return module


def exact(s, weight, bias, dscale, dshift, kind, cast, eps=1e-6):
    """The formula in float64."""
    s, weight = s.double(), weight.double() + (cast == "gemma")
    centred = s - s.mean(-1, keepdim=True) if kind == "layer" else s
    normed = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return (weight + dscale.double()) * normed + dshift.double() + (0 if bias is None else bias.double())


def draw(rng, *shape, dtype=torch.float32):
    return torch.randn(shape, generator=rng).to(dtype)


@pytest.mark.parametrize(("kind", "cast"), KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zero_change_is_bit_equal_to_the_base_norm(rng, kind, cast, dtype):
    x, residual = draw(rng, 5, 7, 96, dtype=dtype), draw(rng, 5, 7, 96, dtype=dtype)
    weight = draw(rng, 96, dtype=dtype)
    bias = draw(rng, 96, dtype=dtype) if kind == "layer" else None
    expected = base(kind, cast, weight, bias)(x + residual)
    zero = torch.zeros_like(x)
    y, total = modulated_norm(x, weight, bias, zero, zero, kind=kind, cast=cast, residual=residual)
    assert torch.equal(y, expected) and torch.equal(total, x + residual)
    poison = torch.full_like(x, torch.nan)
    skipped = modulated_norm(x + residual, weight, bias, poison, poison, kind=kind, cast=cast, keep=x[..., 0] > 99)
    assert torch.equal(skipped, expected)


def test_the_three_rounding_orders_differ_in_bfloat16(rng):
    x, weight = draw(rng, 64, 256, dtype=torch.bfloat16), draw(rng, 256, dtype=torch.bfloat16)
    llama, single = (modulated_norm(x, weight, None, None, None, cast=cast) for cast in ("llama", "single"))
    assert 0.1 < (llama != single).float().mean() < 0.5  # a single rounding moves about a quarter of the elements


@pytest.mark.parametrize(("kind", "cast"), KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 33), (2, 5, 96)])
def test_against_the_formula(rng, close, kind, cast, dtype, shape):
    x, dscale, dshift = (draw(rng, *shape, dtype=dtype) for _ in range(3))
    weight, bias = draw(rng, shape[-1], dtype=dtype), draw(rng, shape[-1], dtype=dtype) if kind == "layer" else None
    y = modulated_norm(x, weight, bias, dscale, dshift, kind=kind, cast=cast)
    assert y.dtype == dtype
    close(y, exact(x, weight, bias, dscale, dshift, kind, cast))


def test_small_changes_are_not_lost_beside_a_large_weight(rng):
    """weight + dscale in bfloat16 would drop a change of 1e-3 beside a weight of 8."""
    x, weight = draw(rng, 4, 64, dtype=torch.bfloat16), torch.full((64,), 8.0, dtype=torch.bfloat16)
    dscale = torch.full_like(x, 2.0**-9)
    shift = -exact(x, weight, None, torch.zeros_like(x), torch.zeros_like(x), "rms", "single").to(torch.bfloat16)
    y = modulated_norm(x, weight, None, dscale, shift, cast="single")
    plain = modulated_norm(x, weight, None, None, shift, cast="single")
    assert not torch.equal(y, plain)


@pytest.mark.parametrize(("kind", "cast"), KINDS)
@pytest.mark.parametrize("with_residual", [False, True])
def test_gradients(rng, kind, cast, with_residual):
    x, residual, dscale, dshift = (draw(rng, 2, 3, 5, dtype=torch.float64).requires_grad_() for _ in range(4))
    weight, bias = (draw(rng, 5, dtype=torch.float64).requires_grad_() for _ in range(2))
    keep = torch.tensor([[True, False, True], [True, True, False]])

    def f(x, residual, weight, bias, dscale, dshift):
        return modulated_norm(
            x,
            weight,
            bias,
            dscale,
            dshift,
            kind=kind,
            cast=cast,
            residual=residual if with_residual else None,
            keep=keep,
        )

    assert torch.autograd.gradcheck(f, (x, residual, weight, bias, dscale, dshift))


@pytest.mark.parametrize("missing", ["weight", "dscale", "dshift"])
def test_gradients_without_a_part(rng, missing):
    parts = {name: draw(rng, 4, 6, dtype=torch.float64).requires_grad_() for name in ("x", "dscale", "dshift")}
    parts["weight"] = draw(rng, 6, dtype=torch.float64).requires_grad_()
    given = {name: tensor for name, tensor in parts.items() if name != missing}

    def f(*tensors):
        values = dict.fromkeys(parts) | dict(zip(given, tensors, strict=True))
        return modulated_norm(values["x"], values["weight"], None, values["dscale"], values["dshift"], cast="gemma")

    assert torch.autograd.gradcheck(f, tuple(given.values()))


def test_strides_and_a_float32_weight_beside_bfloat16_states(rng):
    x = draw(rng, 8, 6, dtype=torch.bfloat16).T
    weight = draw(rng, 8)
    expected = base("rms", "llama", weight, None)(x)
    y = modulated_norm(x, weight, None, torch.zeros_like(x), None)
    assert y.dtype == torch.float32 and torch.equal(y, expected)


def test_memory_is_proportional_to_the_rows(rng):
    def peak(rows):
        x = draw(rng, rows, 64)
        return peak_bytes(lambda: modulated_norm(x, torch.ones(64), None, x, x))

    assert peak(2048) < 2.5 * peak(1024)


def test_wrong_inputs_are_named(rng):
    x, weight = draw(rng, 2, 4), torch.ones(4)
    with pytest.raises(ValueError, match=r"dscale must have the shape of x, \(2, 4\), got \(4,\)"):
        modulated_norm(x, weight, None, weight, None)
    with pytest.raises(ValueError, match="cast 'llama' does not exist for kind 'layer'; choose single"):
        modulated_norm(x, weight, None, None, None, kind="layer", cast="llama")
    with pytest.raises(ValueError, match=r"keep must be bool \(2,\)"):
        modulated_norm(x, weight, None, None, None, keep=torch.ones(2))
    with pytest.raises(ValueError, match="impl='triton' cannot run"):
        modulated_norm(x, weight, None, None, None, impl="triton")


def test_custom_op_is_well_formed_and_compiles(rng):
    x, residual, dscale, dshift = (draw(rng, 3, 8).requires_grad_() for _ in range(4))
    weight = draw(rng, 8).requires_grad_()
    keep = torch.tensor([True, False, True])
    op = torch.ops.mm.modulated_norm.default
    opcheck(op, (x, residual, weight, None, dscale, dshift, keep, "rms", 1e-6, "llama", "auto"))
    opcheck(op, (x, None, weight, weight, None, dshift, None, "layer", 1e-6, "single", "auto"))

    def f(x):
        y, total = modulated_norm(x, weight, None, dscale, dshift, residual=residual, keep=keep)
        return (y * total).sum()

    torch.compile(f, fullgraph=True, backend="aot_eager")(x).backward()
    compiled = x.grad
    x.grad = None
    f(x).backward()
    torch.testing.assert_close(compiled, x.grad)
