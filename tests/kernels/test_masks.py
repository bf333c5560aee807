"""Structured masks: the rule against the definition in words, the parts against the rule."""

import pytest
import torch

from mm.kernels.masks import Causal, Facets, Packed, VisualPrefix, dense_mask

CPU = torch.device("cpu")
CASES = [  # mask, batch, queries, keys
    (Causal(), 2, 5, 5),
    (Causal(), 1, 3, 7),
    (Packed((3, 4)), 2, 9, 9),
    (Packed(((3, 4, 2), (9,)), causal=False), 2, 9, 9),
    (Facets(3, (2, 1, 3)), 3, 10, 10),
    (Facets((4, 2), ((1, 3), (3, 1, 2))), 2, 9, 9),
    (Facets((4, 2), ((1, 3), (3, 1, 2)), padding_side="left"), 2, 9, 9),
    (Facets(0, (2, 3)), 1, 5, 5),
    (Facets(4, ()), 1, 5, 5),
    (VisualPrefix(4), 2, 9, 9),
    (VisualPrefix((4, 0, 9)), 3, 9, 9),
    (VisualPrefix((4, 7)), 2, 4, 9),
]


@pytest.mark.parametrize(("mask", "batch", "queries", "keys"), CASES, ids=str)
def test_parts_cover_exactly_the_allowed_pairs_once(mask, batch, queries, keys):
    covered = torch.zeros(batch, queries, keys, dtype=torch.int)
    begun = torch.zeros(batch, queries, dtype=torch.bool)
    for part in mask.parts(batch, queries, keys):
        rows = covered[part.b0 : part.b1, part.q0 : part.q1, part.k0 : part.k1]
        rows += torch.ones(rows.shape[1:], dtype=torch.int).tril() if part.causal else 1
        assert not part.causal or rows.shape[1] == rows.shape[2]
        begins = begun[part.b0 : part.b1, part.q0 : part.q1]
        assert bool((begins == part.merge).all())  # the first part of a query writes, the others merge
        begins[:] = True
    assert torch.equal(covered, dense_mask(mask, batch, queries, keys, CPU)[:, 0].int())


@pytest.mark.parametrize(("mask", "batch", "queries", "keys"), CASES, ids=str)
def test_parts_of_one_kind_share_no_query_and_no_key(mask, batch, queries, keys):
    seen = set()
    for part in mask.parts(batch, queries, keys):
        for row in range(part.b0, part.b1):
            for axis, span in (("q", range(part.q0, part.q1)), ("k", range(part.k0, part.k1))):
                for place in span:
                    key = part.merge, part.causal, row, axis, place
                    assert key not in seen
                    seen.add(key)


def test_facets_follow_the_published_rule():
    """allowed(i, j): j <= i and (f(j) = 0 or f(j) = f(i)); padding sees nothing and is not seen."""
    owner = [[0, 0, 0, 0, 1, 2, 2, 2, -1], [0, 0, 1, 1, 1, 2, 3, 3, -1]]
    made = dense_mask(Facets((4, 2), ((1, 3), (3, 1, 2))), 2, 9, 9, CPU)
    for row, ids in enumerate(owner):
        for i, asks in enumerate(ids):
            for j, key in enumerate(ids):
                allowed = j <= i and asks >= 0 and key >= 0 and key in (0, asks)
                assert bool(made[row, 0, i, j]) == allowed


def test_visual_prefix_sees_itself_both_ways_and_text_looks_back():
    made = dense_mask(VisualPrefix(2), 1, 4, 4, CPU)[0, 0].int().tolist()
    assert made == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


def test_equal_rows_share_their_parts():
    assert len(Facets(5, (2, 2)).parts(64, 9, 9)) == 4
    left = Facets((5, 3), (2, 2), padding_side="left").parts(2, 9, 9)
    assert [part.b1 - part.b0 for part in left if part.merge] == [2, 2]  # facets line up at the right end


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="do not fit a row of 5"):
        Facets(4, (2, 2)).parts(1, 5, 5)
    with pytest.raises(ValueError, match="describes 2 rows, the batch has 3"):
        Facets((4, 2), (2,)).parts(3, 9, 9)
    with pytest.raises(ValueError, match="needs keys for all 4 queries"):
        Causal().parts(1, 4, 3)
    with pytest.raises(ValueError, match="10 visual tokens do not fit 9 keys"):
        VisualPrefix(10).parts(1, 9, 9)
