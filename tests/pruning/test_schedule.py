"""The schedule against the published table of a 24-block encoder with 576 patches."""

from __future__ import annotations

import pytest

from mm.pruning.schedule import (
    check_fixed_counts,
    constant_ratio_counts,
    cut_layers,
    rounded_counts,
    uniform_counts,
)

TABLE = {
    (64, 1.0): [576] * 10 + [64],
    (64, 0.9): [554, 532, 510, 487, 464, 440, 415, 388, 357, 318, 64],
    (64, 0.8): [535, 495, 456, 418, 381, 345, 309, 273, 235, 191, 64],
    (64, 0.5): [490, 415, 349, 292, 243, 201, 165, 134, 108, 85, 64],
    (128, 0.9): [557, 538, 519, 499, 479, 458, 436, 412, 385, 350, 128],
    (128, 0.8): [540, 505, 471, 438, 406, 374, 343, 311, 278, 240, 128],
    (192, 0.9): [560, 544, 527, 510, 493, 475, 456, 436, 413, 383, 192],
    (192, 0.8): [545, 515, 486, 458, 430, 403, 376, 349, 321, 288, 192],
    (320, 0.9): [565, 554, 543, 532, 520, 508, 495, 481, 466, 446, 320],
}


@pytest.mark.parametrize(("target", "ratio"), list(TABLE))
def test_published_table(target, ratio):
    cuts = cut_layers(21, 2)
    assert len(cuts) == 11
    assert constant_ratio_counts(576, target, cuts, ratio) == TABLE[target, ratio]


@pytest.mark.parametrize("interval", [1, 3, 4, 22])
def test_the_last_cut_is_always_there(interval):
    assert cut_layers(21, interval)[-1] == 21


def test_uniform_keeps_equal_shares():
    assert uniform_counts(100, 25, 2) == [50, 25]


def test_rounding_never_grows_and_ends_at_the_target():
    assert rounded_counts([130.2, 129.9, 60.0, 47.0], target=47, multiple=16) == (144, 144, 64, 47)


@pytest.mark.parametrize("counts", [(60, 64, 16), (60, 40), (60, 40, 17)])
def test_a_table_that_does_not_fit(counts):
    with pytest.raises(ValueError, match=r"cuts|counts"):
        check_fixed_counts(counts, cuts=3, target=16)
