import itertools
from collections import Counter

import numpy as np
import pytest

from mm.data.split import SEEDS_PER_SPLIT, Split, balanced, generator, split_of

NAMES = ("train", "validation", "test")


def test_ranges_never_meet():
    ranges = [Split(name).seeds for name in NAMES]
    for first, second in itertools.combinations(ranges, 2):
        assert max(first.start, second.start) >= min(first.stop, second.stop)
    assert all(len(seeds) == SEEDS_PER_SPLIT for seeds in ranges)


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_knows_its_split_at_both_ends(name):
    split = Split(name)
    assert split_of(split.seed(0)) == split_of(split.seed(SEEDS_PER_SPLIT - 1)) == name


@pytest.mark.parametrize("index", [-1, SEEDS_PER_SPLIT])
def test_a_sample_number_outside_the_range_is_refused(index):
    with pytest.raises(ValueError, match="sample number must be in"):
        Split("train").seed(index)


@pytest.mark.parametrize("seed", [-1, 3 * SEEDS_PER_SPLIT])
def test_a_seed_outside_all_ranges_is_refused(seed):
    with pytest.raises(ValueError, match="seed must be in"):
        generator(seed, "scene")


def test_unknown_split_lists_the_allowed_ones():
    with pytest.raises(ValueError, match="train, validation, test"):
        Split("dev")


def test_streams_of_one_seed_differ_and_repeat():
    first, again, other = (generator(9, stream).random(4) for stream in ("a", "a", "b"))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


@pytest.mark.parametrize("choices", [2, 3, 4])
def test_balanced_is_exact_in_every_block_but_not_a_fixed_cycle(choices):
    drawn = [balanced(seed, choices, "x") for seed in range(40 * choices)]
    blocks = [tuple(drawn[i : i + choices]) for i in range(0, len(drawn), choices)]
    assert all(sorted(block) == list(range(choices)) for block in blocks)
    assert len(Counter(blocks)) > 1
