"""Window geometry against plain loops over coordinates, and against the published roll-and-partition."""

import itertools

import pytest
import torch

from mm.kernels.windows import clip_window, pair_index, pairs_by_row, relative_position_bias, window_layout

CPU = torch.device("cpu")


def rolled_windows(volume, window, shift):
    """Pad with -1, roll, cut: the way the papers write it. volume (D, H, W) of token numbers -> (G, n)."""
    pads = [(-d) % w for d, w in zip(volume.shape, window, strict=True)]
    for axis, pad in enumerate(pads):
        shape = list(volume.shape)
        shape[axis] = pad
        volume = torch.cat([volume, volume.new_full(shape, -1)], axis)
    volume = volume.roll([-s for s in shift], (0, 1, 2))
    counts = [d // w for d, w in zip(volume.shape, window, strict=True)]
    rows = []
    for a, b, c in itertools.product(*map(range, counts)):
        x, y, z = a * window[0], b * window[1], c * window[2]
        rows.append(volume[x : x + window[0], y : y + window[1], z : z + window[2]].flatten())
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("dims", "window", "shift"),
    [((4, 4, 4), (2, 2, 2), (1, 1, 1)), ((5, 6, 7), (3, 2, 4), (1, 1, 2)), ((5, 3, 7), (2, 3, 3), (0, 0, 0))],
)
def test_index_is_roll_and_partition(dims, window, shift):
    tokens = torch.arange(dims[0] * dims[1] * dims[2]).view(dims)
    used, moved = clip_window(dims, window, shift)
    layout = window_layout(dims, window, shift, CPU)
    assert torch.equal(layout.index.long(), rolled_windows(tokens, used, moved))


def test_labels_separate_what_the_roll_brought_together():
    dims, window, shift = (4, 6, 5), (2, 3, 3), (1, 1, 2)
    layout = window_layout(dims, window, shift, CPU)
    padded = [-(-d // w) * w for d, w in zip(dims, window, strict=True)]
    place = torch.arange(padded[0] * padded[1] * padded[2]).view(padded)
    where = rolled_windows(place, window, shift)  # position before the roll, on the padded grid
    for row, labels in zip(where, layout.labels, strict=True):
        spots = torch.stack(torch.unravel_index(row, padded), -1)
        near = ((spots[:, None] - spots[None]).abs() < torch.tensor(window)).all(-1)  # adjacent before the roll
        assert torch.equal(near, labels[:, None] == labels[None])


def test_unshifted_layout_has_no_labels_and_clipped_axes_do_not_shift():
    assert window_layout((4, 4, 4), (2, 2, 2), (0, 0, 0), CPU).labels is None
    layout = window_layout((2, 2, 2), (7, 7, 7), (3, 3, 3), CPU)
    assert layout.window == (2, 2, 2) and layout.labels is None and layout.index.tolist() == [list(range(8))]


def brute_bias(table, window, table_window):
    places = list(itertools.product(*map(range, window)))
    out = torch.empty(table.shape[1], len(places), len(places), dtype=table.dtype)
    for i, a in enumerate(places):
        for j, b in enumerate(places):
            row = 0
            for x, y, full in zip(a, b, table_window, strict=True):
                row = row * (2 * full - 1) + x - y + full - 1
            out[:, i, j] = table[row]
    return out


@pytest.mark.parametrize(("window", "full"), [((2, 3, 2), (2, 3, 2)), ((1, 2, 3), (2, 2, 4)), ((1, 1, 1), (3, 3, 3))])
def test_bias_follows_coordinates_also_when_clipped(window, full, rng):
    rows = (2 * full[0] - 1) * (2 * full[1] - 1) * (2 * full[2] - 1)
    table = torch.randn(rows, 2, generator=rng)
    assert torch.equal(relative_position_bias(table, window, full), brute_bias(table, window, full))


def test_legacy_index_is_the_corner_of_the_full_matrix(rng):
    table = torch.randn(3 * 5 * 5, 2, generator=rng)
    full = relative_position_bias(table, (2, 3, 3))
    assert torch.equal(relative_position_bias(table, (2, 2, 2), (2, 3, 3), legacy_index=True), full[:, :8, :8])
    # a window clipped in time alone is the case where the corner is right
    exact, legacy = (relative_position_bias(table, (1, 3, 3), (2, 3, 3), legacy_index=old) for old in (False, True))
    assert torch.equal(exact, legacy)


def test_pairs_by_row_lists_each_pair_once():
    pairs = pair_index((2, 2, 2), (3, 3, 3), False, CPU)
    order, first = pairs_by_row(pairs, 125)
    assert sorted(order.tolist()) == list(range(64)) and int(first[-1]) == 64
    for row in range(125):
        assert all(pairs.flatten()[order[first[row] : first[row + 1]].long()] == row)


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match=r"shift must lie in \[0, window\)"):
        window_layout((4, 4, 4), (2, 2, 2), (2, 0, 0), CPU)
    with pytest.raises(ValueError, match=r"is \(27, heads\), found \(26, 2\)"):
        relative_position_bias(torch.zeros(26, 2), (2, 2, 2))
    with pytest.raises(ValueError, match="larger than the window"):
        relative_position_bias(torch.zeros(27, 2), (3, 2, 2), (2, 2, 2))
