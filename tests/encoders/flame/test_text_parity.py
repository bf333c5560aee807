"""The text tower against numbers of the published reference implementation."""

from __future__ import annotations

import pytest

from tests.encoders.flame.conftest import relative

WAYS = [(side, sharing) for side in ("left", "right") for sharing in ("mask", "fork")]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_cleaning_template_and_tokenizer_give_the_published_ids(text, encoder, index):
    for template, name in (("long", "multi"), ("single", "single")):
        (row,) = encoder().rows([text.captions[index]], template)
        assert row.input_ids == text.tensors[f"input_ids.{name}.{index}"].tolist()


@pytest.mark.parametrize(("side", "sharing"), WAYS)
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_embeddings_for_any_batch_and_padding(text, encoder, side, sharing, batch_size):
    built = encoder(padding_side=side, sharing=sharing)
    facets = built.encode(text.captions, "long", batch_size=batch_size)
    mean = built.encode(text.captions, "long", reduce="mean", batch_size=batch_size)
    single = built.encode(text.captions, "single", batch_size=batch_size)
    assert facets.shape == (3, 7, 64) and mean.shape == (3, 64) and single.shape == (3, 1, 64)
    for index in range(3):
        assert relative(facets[index], text.tensors[f"expected.multi.{index}"]) < 1e-5
        assert relative(mean[index], text.tensors[f"expected.multi_mean.{index}"]) < 1e-5
        assert relative(single[index, 0], text.tensors[f"expected.single.{index}"]) < 1e-5


def test_the_block_is_the_right_one(text, encoder):
    """One block off, or the last one behind its norm, is far away."""
    expected = text.tensors["expected.multi.0"]
    for layer in (3, 5):
        assert relative(encoder(layer=layer).encode(text.captions[:1])[0], expected) > 0.1


def test_spans_of_the_facets(text, encoder):
    """Lengths of the seven spans under the published wording, and every span ends in the closing quote."""
    (row,) = encoder().rows(["A dog."])
    assert [row.facet_ids.count(k) for k in range(1, 8)] == [11, 15, 18, 15, 18, 16, 14]
    ends = [i for i, k in enumerate(row.facet_ids) if i + 1 == len(row.facet_ids) or row.facet_ids[i + 1] != k]
    tokens = [text.tokenizer.decode([row.input_ids[i]]) for i in ends]
    assert tokens == [" ,"] + [':"'] * 7
