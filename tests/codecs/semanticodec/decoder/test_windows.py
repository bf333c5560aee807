"""Windows, their joins and their lengths."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mm.codecs.semanticodec.windows import (
    cross_fade,
    cut_windows,
    masked_tail,
    official_length,
    overlap_add,
    window_ranges,
)


def test_ranges_equal_the_published_ones(data):
    table = json.loads((data / "semanticodec_tables.json").read_text())["decode_windows"]
    for stack in (1, 2, 4):
        window = 512 // stack
        for row in table[f"k{stack}"]:
            found = [list(pair) for pair in window_ranges(row["tokens"], window, window // 16)]
            assert found == row["windows"], row["tokens"]


@given(tokens=st.integers(1, 4000), window=st.integers(2, 64), overlap=st.integers(0, 63))
@settings(max_examples=200, deadline=None)
def test_ranges_cover_every_token_and_overlap_exactly(tokens, window, overlap):
    overlap = min(overlap, window - 1)
    ranges = window_ranges(tokens, window, overlap)
    assert ranges[0][0] == 0 and ranges[-1][1] == tokens
    for (start, end), (following, last) in pairwise(ranges):
        assert end - start == window and following == end - overlap and last - following > overlap


def test_official_lengths_equal_the_published_ones(data):
    table = json.loads((data / "semanticodec_tables.json").read_text())["decode_length"]
    for stack in (1, 2, 4):
        exceptions = dict(map(tuple, table[f"k{stack}"]["exceptions"]))
        assert len(exceptions) == table[f"k{stack}"]["exceptions_total"]
        for tokens in range(1, 4001):
            assert official_length(tokens, stack) == exceptions.get(tokens, 320 * stack * tokens)


def test_joins_equal_the_reference(parity, close):
    fixture = parity("overlap_add")
    windows, overlap = fixture["windows"], int(fixture["overlap_samples"])
    close(overlap_add(list(windows), overlap), fixture["expected.joined"])
    close(overlap_add(list(windows[:1]), overlap), fixture["expected.single"])


@pytest.mark.parametrize("samples", [163840, 163872])
def test_full_windows_join_as_the_reference(samples, parity, close):
    fixture = parity("overlap_add")
    joined = overlap_add([torch.full((1, 1, samples), float(value)) for value in (1, 2, 3)], 10240)
    prefix = f"expected.full{samples}."
    assert joined.shape[-1] == int(fixture[prefix + "length"])
    close(joined[0, 0, fixture[prefix + "positions"]], fixture[prefix + "values"])


def test_cutting_and_joining_gives_the_signal_back():
    signal = torch.randn(1, 1, 163840 + 2 * 153600, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pieces = [signal[..., start : start + 163840] for start in (0, 153600, 307200)]
    torch.testing.assert_close(overlap_add(pieces, 10240), signal)
    longer = [torch.nn.functional.pad(piece, (0, 32)) for piece in pieces]
    drifted = overlap_add(longer, 10240)
    # Untrimmed windows: behind the second join everything comes 32 samples late per join.
    assert torch.equal(drifted[..., 330000:400000], signal[..., 330000 - 64 : 400000 - 64])


def test_joining_works_piece_by_piece_and_leaves_its_input_alone():
    windows = [torch.randn(1, 10, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    copies = [window.clone() for window in windows]
    taken, pieces = [], []
    for piece in cross_fade((taken.append(i) or window for i, window in enumerate(windows)), 3):
        pieces.append((len(taken), piece.shape[-1]))
    assert pieces == [(1, 7), (2, 7), (3, 7), (4, 7), (4, 3)]
    assert all(torch.equal(a, b) for a, b in zip(windows, copies, strict=True))
    with pytest.raises(ValueError, match="cannot overlap"):
        overlap_add([torch.zeros(1, 3)], 3)


def test_positions_behind_the_end_are_minus_one():
    features = torch.ones(2, 10, 3)
    windows = cut_windows(features, [(0, 6), (4, 10), (8, 10)], 6)
    assert windows.shape == (2, 3, 6, 3)
    assert (windows[:, :2] == 1).all() and (windows[:, 2, :2] == 1).all() and (windows[:, 2, 2:] == -1).all()
    masked = masked_tail(features, torch.tensor([10, 4]))
    assert (masked[0] == 1).all() and (masked[1, :4] == 1).all() and (masked[1, 4:] == -1).all()


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="nothing to decode"):
        window_ranges(0, 8, 2)
    with pytest.raises(ValueError, match=r"0\.\.7"):
        window_ranges(8, 8, 8)
