"""The Triton norm, forward and backward, against the reference; runs in the interpreter's own process."""

import pytest
import torch

from mm.kernels import modulated_norm

KINDS = [("rms", "llama"), ("rms", "gemma"), ("rms", "single"), ("layer", "single")]


@pytest.mark.parametrize(("kind", "cast"), KINDS)
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 12), (2, 3, 33)])
def test_forward_and_backward(rng, kind, cast, with_residual, shape):
    tensors = [torch.randn(shape, generator=rng) for _ in range(4)]
    tensors += [torch.randn(shape[-1], generator=rng) for _ in range(2)]
    keep = torch.rand(shape[:-1], generator=rng) < 0.7
    keep[0, 0] = True
    results = []
    for impl in ("triton", "reference"):
        x, residual, dscale, dshift, weight, bias = leaves = [t.clone().requires_grad_() for t in tensors]
        options = {"kind": kind, "cast": cast, "keep": keep, "impl": impl}
        out = modulated_norm(x, weight, bias, dscale, dshift, residual=residual if with_residual else None, **options)
        out = out if with_residual else (out,)
        sum((o * torch.linspace(-1, 2, o.numel()).view(shape)).sum() for o in out).backward()
        results.append([*out, *(t.grad for t in leaves if t.grad is not None)])
    assert len(results[0]) == len(results[1])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_half_precision_rounds_like_the_base_norm(rng):
    x, weight = (torch.randn(s, generator=rng).half() for s in ((16, 64), (64,)))
    for cast in ("llama", "gemma", "single"):
        ours, expected = (
            modulated_norm(x, weight, None, None, None, cast=cast, impl=i) for i in ("triton", "reference")
        )
        assert (ours != expected).float().mean() < 0.01  # another order of summation may move the last bit
