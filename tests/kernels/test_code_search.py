"""Nearest codes: the exact winners, whatever the inputs, in O(N) memory."""

import pytest
import torch
from torch.library import opcheck

from mm.kernels import code_search_blocked, nearest_code
from mm.kernels.measure import peak_bytes


def exact(x, book, metric, topk):
    """fp64 oracle with the whole matrix; ties go to the lowest index because the sort is stable."""
    x, book = x.double(), book.double()
    if metric == "cosine":
        x, book = (t / t.norm(dim=-1, keepdim=True).clamp_min(1e-12) for t in (x, book))
        far = 1 - x @ book.T
    else:
        far = (x[:, None] - book[None]).square().sum(-1)
    values, order = far.sort(dim=-1, stable=True)
    return order[:, :topk], values[:, :topk]


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("topk", [1, 4])
@pytest.mark.parametrize("shape", [(1, 5, 1), (33, 257, 12), (130, 1000, 72), (2100, 40, 8)])
def test_winners_and_distances_of_the_blocked_search(rng, close, shape, topk, metric):
    count, codes, width = shape
    x, book = torch.randn(count, width, generator=rng), torch.randn(codes, width, generator=rng)
    indices, distances = nearest_code(x, book, metric=metric, topk=topk, impl="blocked")
    order, far = exact(x, book, metric, topk)
    if topk == 1:
        order, far = order[:, 0], far[:, 0]
    assert indices.dtype == torch.int64 and indices.tolist() == order.tolist()
    close(distances, far, dtype=torch.float32)


@pytest.mark.parametrize("work", [torch.bfloat16, torch.float32])
def test_a_large_common_mean_does_not_change_the_winners(rng, monkeypatch, work):
    monkeypatch.setattr(code_search_blocked, "matmul_dtype", lambda x: work)
    x, book = torch.randn(200, 48, generator=rng) + 100, torch.randn(700, 48, generator=rng) + 100
    indices, _ = nearest_code(x, book, impl="blocked")
    assert indices.tolist() == exact(x, book, "l2", 1)[0][:, 0].tolist()


def test_near_ties_that_bfloat16_cannot_tell_apart_are_decided_exactly(rng, monkeypatch):
    monkeypatch.setattr(code_search_blocked, "matmul_dtype", lambda x: torch.bfloat16)
    base = torch.randn(64, generator=rng)
    book = base + 1e-3 * torch.randn(500, 64, generator=rng)  # all codes round to about the same bfloat16 vector
    x = base + 1e-3 * torch.randn(40, 64, generator=rng)
    for metric in ("l2", "cosine"):
        indices, _ = nearest_code(x, book, metric=metric, impl="blocked")
        best = exact(x, book, metric, 1)[1][:, 0]
        taken = exact(x, book, metric, 500)
        distance = taken[1].gather(1, (taken[0] == indices[:, None]).int().argmax(1, keepdim=True))[:, 0]
        # cosine distances here are 1e-6, next to the rounding of float32 around one
        torch.testing.assert_close(distance, best, atol=3e-7 if metric == "cosine" else 1e-12, rtol=1e-6)
    assert indices.unique().numel() > 5


@pytest.mark.parametrize("impl", ["blocked", "reference"])
def test_ties_go_to_the_lowest_index(impl):
    book = torch.eye(4).repeat(300, 1)
    indices, distances = nearest_code(torch.eye(4), book, topk=3, impl=impl)
    assert indices.tolist() == [[i, i + 4, i + 8] for i in range(4)]
    assert distances.abs().max() == 0
    assert nearest_code(torch.zeros(3, 4), book, metric="cosine", impl=impl)[0].tolist() == [0, 0, 0]


def test_half_precision_strides_and_leading_dims(rng):
    x = torch.randn(6, 20, 5, generator=rng).bfloat16().transpose(1, 2)
    book = torch.randn(40, 50, generator=rng)[:, ::2][:, :20]
    indices, distances = nearest_code(x, book)
    assert indices.shape == distances.shape == (6, 5) and distances.dtype == torch.float32
    assert indices.flatten().tolist() == exact(x.reshape(30, 20), book, "l2", 1)[0][:, 0].tolist()
    assert nearest_code(x[:0], book, topk=2)[0].shape == (0, 5, 2)


@pytest.mark.parametrize("impl", ["blocked", "reference"])
def test_a_vector_that_is_not_finite_is_reported(impl):
    x = torch.tensor([[torch.nan, 0.0], [1.0, 0.1]])
    indices, distances = nearest_code(x, torch.eye(2), impl=impl)
    assert indices.tolist() == [0, 0] and distances[0].isnan() and distances[1] < 0.1


def test_autocast_does_not_touch_distances(rng):
    x, book = torch.randn(64, 32, generator=rng), torch.randn(512, 32, generator=rng)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        indices, distances = nearest_code(x, book)
    plain, far = nearest_code(x, book)
    assert torch.equal(indices, plain) and torch.equal(distances, far)


def test_memory_grows_with_vectors_and_not_with_vectors_times_codes(rng):
    book = torch.randn(4096, 16, generator=rng)
    x = torch.randn(8192, 16, generator=rng)
    few, many = peak_bytes(lambda: nearest_code(x[:2048], book)), peak_bytes(lambda: nearest_code(x, book))
    assert many < 24e6 < 8192 * 4096 * 4 / 5
    assert many - few < (8192 - 2048) * 200  # bytes per further vector


def test_wrong_inputs_are_named():
    x, book = torch.randn(2, 3), torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"of one width, got \(2, 3\) and \(4, 2\)"):
        nearest_code(x, book[:, :2])
    with pytest.raises(ValueError, match=r"topk must lie in 1\.\.4 \(the number of codes\), got 5"):
        nearest_code(x, book, topk=5)
    with pytest.raises(ValueError, match="unknown metric 'dot'; choose l2 or cosine"):
        nearest_code(x, book, metric="dot")
    with pytest.raises(ValueError, match=r"impl='triton' cannot run: no CUDA device .* use impl='blocked'"):
        nearest_code(x, book, impl="triton")


def test_custom_op_is_well_formed_and_compiles(rng):
    x, book = torch.randn(9, 8, generator=rng), torch.randn(30, 8, generator=rng)
    opcheck(torch.ops.mm.nearest_code.default, (x, book, "l2", 2, "auto"))
    compiled = torch.compile(lambda a, b: nearest_code(a, b)[0] + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, book), nearest_code(x, book)[0] + 1)
