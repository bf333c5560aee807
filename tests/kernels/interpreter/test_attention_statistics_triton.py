"""The Triton statistics against the reference; runs in the interpreter's own process."""

import pytest
import torch

from mm.kernels import attention_with_scores
from mm.kernels.attention_statistics_triton import row_scores


def both(q, k, v, **options):
    options |= {"rows": "last", "columns": True, "entropy": True, "head_reduce": "none"}
    return (attention_with_scores(q, k, v, impl=impl, **options) for impl in ("triton", "reference"))


def same(ours, expected):
    torch.testing.assert_close(ours[0], expected[0], atol=1e-5, rtol=1e-5)
    for a, b in zip(ours[1], expected[1], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def draw(rng, heads, queries, kv_heads, keys, width):
    shapes = [(2, queries, heads, width), (2, keys, kv_heads, width), (2, keys, kv_heads, width)]
    return [torch.randn(shape, generator=rng).transpose(1, 2) for shape in shapes]


@pytest.mark.parametrize("shape", [(2, 1, 1, 1, 12), (4, 17, 2, 33, 16), (2, 33, 2, 17, 72)])
@pytest.mark.parametrize("causal", [False, True])
def test_statistics(rng, shape, causal):
    same(*both(*draw(rng, *shape), is_causal=causal))


def test_padding_and_empty_rows(rng):
    keep = torch.arange(20) < torch.tensor([13, 0])[:, None]
    same(*both(*draw(rng, 2, 20, 1, 20, 16), mask=keep))


def test_row_scores(rng):
    q, k, _ = draw(rng, 4, 3, 2, 33, 20)
    expected = q @ k.repeat_interleave(2, 1).transpose(-1, -2) * 0.3
    torch.testing.assert_close(row_scores(q, k, 0.3), expected, atol=1e-5, rtol=1e-5)
