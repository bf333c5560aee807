"""The Triton search against the definition; runs in the interpreter's own process."""

import pytest
import torch

from mm.kernels import nearest_code


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize(("vectors", "codes", "width"), [(1, 1, 3), (5, 70, 20), (17, 33, 16), (3, 100, 50)])
def test_same_winners(rng, metric, vectors, codes, width):
    x = torch.randn(vectors, width, generator=rng) + 2
    book = torch.randn(codes, width, generator=rng) + 2
    book[codes // 2] = book[codes // 3]  # a tie
    x[0] = book[codes // 2]
    indices, distances = nearest_code(x, book, metric=metric, impl="triton")
    expected, far = nearest_code(x, book, metric=metric, impl="reference")
    assert indices.tolist() == expected.tolist()
    torch.testing.assert_close(distances, far, atol=1e-5, rtol=1e-5)


def test_more_groups_than_one_chunk_and_several_launches(rng, monkeypatch):
    import mm.kernels.code_search_triton as search

    monkeypatch.setattr(search, "_MAXIMA_BYTES", 4 * 3 * 7)  # 6 groups: three vectors per launch
    x, book = torch.randn(7, 8, generator=rng), torch.randn(90, 8, generator=rng)
    indices, _ = nearest_code(x, book, impl="triton")
    assert indices.tolist() == nearest_code(x, book, impl="reference")[0].tolist()


def test_a_vector_that_is_not_finite_is_reported():
    indices, distances = nearest_code(torch.tensor([[torch.nan, 0.0], [1.0, 0.0]]), torch.eye(2), impl="triton")
    assert indices.tolist() == [0, 0] and distances[0].isnan() and distances[1] == 0
