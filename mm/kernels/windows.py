"""Geometry of 3-D shifted windows: which token sits where, and which relative-position bias belongs to a pair.

Swin (Liu et al. 2021, arXiv:2103.14030, section 3.2) rolls the volume, cuts it into windows, attends inside each and
puts everything back. Here the volume stays where it is: a small table says for each place of each window which token
of the volume belongs there (-1: beyond the border), and another gives each place a region label; only places with
equal labels attend to each other.
Dims: D, H, W volume, G windows, n tokens per window, R entries of the bias table, heads as in the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

Size3 = tuple[int, int, int]


@dataclass(frozen=True)
class WindowLayout:
    """Where the tokens of each window come from; see `window_layout`."""

    index: Tensor
    """Token of the flattened volume at each window place, (G, n) int32; -1 beyond the border."""
    labels: Tensor | None
    """Region label of each place, (G, n) int32; None when all places of every window may attend to each other."""
    window: Size3
    """Window after clipping to the volume."""
    padded: bool
    """Whether some places lie beyond the border."""


def clip_window(dims: Size3, window: Size3, shift: Size3) -> tuple[Size3, Size3]:
    """Window and shift for a volume: an axis no longer than the window becomes one unshifted window.

    Example:
        >>> clip_window((3, 8, 8), (7, 7, 7), (3, 3, 3))
        ((3, 7, 7), (0, 3, 3))
    """
    fits = [d <= w for d, w in zip(dims, window, strict=True)]
    clipped = tuple(d if fit else w for d, w, fit in zip(dims, window, fits, strict=True))
    shifted = tuple(0 if fit else s for s, fit in zip(shift, fits, strict=True))
    return clipped, shifted  # type: ignore[return-value]


@lru_cache(maxsize=64)
def window_layout(dims: Size3, window: Size3, shift: Size3, device: torch.device) -> WindowLayout:
    """Token table and region labels of the (shifted) windows of a volume; O(tokens) memory, cached per shape.

    Args:
        dims: Volume (D, H, W) in tokens.
        window: Window size; axes longer than the volume are clipped to it.
        shift: Cyclic shift per axis, 0 <= shift < window; ignored on clipped axes.
        device: Where the tables live.
    """
    if not all(0 <= s < w for s, w in zip(shift, window, strict=True)):
        raise ValueError(f"shift must lie in [0, window) on each axis, got shift={shift}, window={window}")
    window, shift = clip_window(dims, window, shift)
    token = torch.zeros(1, 1, dtype=torch.int32, device=device)
    label, outside = torch.zeros_like(token), torch.zeros_like(token, dtype=torch.bool)
    for size, width, step in zip(dims, window, shift, strict=True):
        count = -(-size // width)
        rolled = torch.arange(count * width, dtype=torch.int32, device=device).view(count, width)
        source = (rolled + step) % (count * width)  # where `torch.roll(x, -step)` takes each place from
        wrapped = (rolled >= count * width - step).int()
        token = _product(token * size, source.clamp(max=size - 1))
        label = _product(label * 2, wrapped)
        outside = _product(outside.int(), (source >= size).int()) > 0
    padded = any(size % width for size, width in zip(dims, window, strict=True))
    index = token.masked_fill(outside, -1) if padded else token
    return WindowLayout(index.contiguous(), label.contiguous() if any(shift) else None, window, padded)


def _product(outer: Tensor, inner: Tensor) -> Tensor:
    """Sums of all pairs, windows with windows and places with places: (G, n), (g, m) -> (G g, n m)."""
    pairs = outer[:, None, :, None] + inner[None, :, None, :]
    return pairs.flatten(2).flatten(0, 1)


@lru_cache(maxsize=64)
def pair_index(window: Size3, table_window: Size3, legacy_index: bool, device: torch.device) -> Tensor:
    """Row of the relative-position table for every pair of window places, (n, n) int32.

    Args:
        window: Window in use, no larger than `table_window` on any axis.
        table_window: Window that the table was made for; the last axis varies fastest.
        legacy_index: Look a clipped window up by the top-left corner of the full window's matrix, as MONAI and Video
            Swin do. Right only while the two last axes keep their size; needed for weights trained that way.
        device: Where the result lives.
    """
    if any(w > t for w, t in zip(window, table_window, strict=True)):
        raise ValueError(f"window {window} is larger than the window {table_window} of the bias table")
    if legacy_index and window != table_window:
        return pair_index(table_window, table_window, False, device)[: prod(window), : prod(window)].contiguous()
    axes = [torch.arange(w, dtype=torch.int32, device=device) for w in window]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)  # (3, n)
    row = torch.zeros((), dtype=torch.int32, device=device)
    for place, full in zip(places, table_window, strict=True):
        row = row * (2 * full - 1) + place[:, None] - place[None, :] + full - 1
    return row


def relative_position_bias(
    table: Tensor, window: Size3, table_window: Size3 | None = None, legacy_index: bool = False
) -> Tensor:
    """Bias of every pair of window places: table (R, heads), R = prod(2 w - 1) -> (heads, n, n), differentiable.

    Arguments as in `pair_index`; `table_window` defaults to `window`.
    """
    table_window = table_window or window
    check_table(table, table_window)
    return table[pair_index(window, table_window, legacy_index, table.device)].permute(2, 0, 1)


def check_table(table: Tensor, table_window: Size3) -> None:
    """Raise ValueError unless the table has one row per coordinate difference of `table_window`."""
    rows = prod([2 * w - 1 for w in table_window])
    if table.ndim != 2 or len(table) != rows:
        raise ValueError(f"a bias table for window {table_window} is ({rows}, heads), found {tuple(table.shape)}")


_PAIRS_BY_ROW: WeakIdKeyDictionary = WeakIdKeyDictionary()


def pairs_by_row(pairs: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Flat pairs sorted by table row, (n n) int32, and where each row begins, (rows + 1) int32; kept per `pairs`."""
    if pairs not in _PAIRS_BY_ROW:
        flat = pairs.flatten()
        first = torch.zeros(rows + 1, dtype=torch.int32, device=pairs.device)
        first[1:] = torch.bincount(flat, minlength=rows).cumsum(0)
        _PAIRS_BY_ROW[pairs] = flat.argsort(stable=True).int(), first
    return _PAIRS_BY_ROW[pairs]
