"""The Triton kernels on a real GPU: the dtype ladder, real sizes, repeated runs. `pytest -m gpu tests/kernels`."""

import pytest
import torch

from mm.kernels import attention_with_scores, modulated_norm, nearest_code

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture
def rng():
    return torch.Generator("cuda").manual_seed(0)


def draw(rng, *shape, dtype=torch.float32):
    return torch.randn(shape, generator=rng, device="cuda").to(dtype)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("shape", [(1, 5, 3), (777, 8192, 32), (1000, 5000, 72), (4096, 32768, 768)])
def test_nearest_code_is_exact(rng, metric, shape):
    count, codes, width = shape
    x, book = draw(rng, count, width) + 1, draw(rng, codes, width) + 1
    indices, distances = nearest_code(x, book, metric=metric, impl="triton")
    expected, far = nearest_code(x.cpu(), book.cpu(), metric=metric, impl="blocked")
    assert torch.equal(indices.cpu(), expected)
    torch.testing.assert_close(distances.cpu(), far, atol=1e-6, rtol=1e-5)
    assert torch.equal(nearest_code(x, book, metric=metric, impl="triton")[0], indices)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [32, 64, 72, 80, 128, 256])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_statistics(rng, close, dtype, width, causal):
    q, k, v = (draw(rng, 2, n, h, width, dtype=dtype).transpose(1, 2) for n, h in ((577, 4), (577, 2), (577, 2)))
    keep = torch.arange(577, device="cuda") < torch.tensor([577, 300], device="cuda")[:, None]
    for mask in (None, keep):
        options = {"rows": "last", "columns": True, "mask": mask, "is_causal": causal}
        for entropy in (False, True):
            ours = attention_with_scores(q, k, v, entropy=entropy, impl="triton", **options)
            exact = attention_with_scores(
                q.double(), k.double(), v.double(), entropy=entropy, impl="reference", **options
            )
            close(ours[0], exact[0])
            for a, b in zip(ours[1], exact[1], strict=True):
                if a is not None:
                    finite = b.isfinite()
                    close(a[finite], b[finite])


@pytest.mark.parametrize(("kind", "cast"), [("rms", "llama"), ("rms", "gemma"), ("rms", "single"), ("layer", "single")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 33), (4100, 3584)])
def test_modulated_norm(rng, close, kind, cast, dtype, shape):
    tensors = [draw(rng, *shape, dtype=dtype) for _ in range(4)] + [draw(rng, shape[1], dtype=dtype)]
    results = []
    for impl, wide in (("triton", dtype), ("reference", torch.float64)):
        x, residual, dscale, dshift, weight = leaves = [t.to(wide, copy=True).requires_grad_() for t in tensors]
        y, total = modulated_norm(x, weight, None, dscale, dshift, kind=kind, cast=cast, residual=residual, impl=impl)
        (y * total.detach()).sum().backward()
        results.append([y.detach(), *(t.grad for t in leaves)])
    for ours, exact in zip(*results, strict=True):
        close(ours, exact, limit=2e-2 if dtype == torch.bfloat16 else 1e-5)
