"""Rows that hold different numbers of tokens: one padded tensor and a mask.

Two pictures seldom lose the same number of tokens in the same layer. They still run as one batch: rows are padded to
the longest one, and `keep` (True = real) hides the padding from attention and statistics. `keep` is None while all rows
are equally long, so that the common case pays for no mask.
Dims: B rows, n columns now, m columns after a cut, D any trailing sizes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def gather_rows(values: Tensor, columns: Tensor) -> Tensor:
    """Pick columns per row.

    Args:
        values: (B, n, ...).
        columns: Column numbers per row, (B, m) int64.

    Returns:
        (B, m, ...), dtype of `values`.
    """
    index = columns.reshape(*columns.shape, *(1,) * (values.ndim - 2)).expand(*columns.shape, *values.shape[2:])
    return values.gather(1, index)


def best_columns(scores: Tensor, counts: Tensor, width: int, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Columns of the `counts` highest scores of each row, in ascending order.

    Equal scores: the lower column wins, on every device (stable sort).

    Args:
        scores: (B, n), any float dtype.
        counts: Columns to keep per row, (B,) int64, each at most the real columns of its row.
        width: Columns of the result (m); at least the largest count.
        keep: True where a column is real, (B, n) bool; None means everywhere.

    Returns:
        Columns (B, m), of which only the first `counts` of a row mean something (the rest repeat column 0), and a mask
        of those that do (B, m) bool.
    """
    length = scores.shape[1]
    ranked = scores if keep is None else scores.masked_fill(~keep, -torch.inf)
    order = ranked.sort(dim=1, descending=True, stable=True).indices
    places = torch.arange(length, device=scores.device)
    rank = torch.empty_like(order).scatter_(1, order, places.expand_as(order))
    chosen = torch.where(rank < counts[:, None], places, length)
    columns = chosen.sort(dim=1).values[:, :width]
    real = columns < length
    return columns.masked_fill(~real, 0), real


def pad_rows(rows: Sequence[Tensor], value: float = 0.0) -> tuple[Tensor, Tensor | None]:
    """Stack tensors of different lengths.

    Args:
        rows: Tensors (n_i, ...), at least one.
        value: Fills the padding.

    Returns:
        (B, max n_i, ...) and a mask (B, max n_i) bool, None when all rows are equally long.
    """
    lengths = [len(row) for row in rows]
    if len(set(lengths)) == 1:
        return torch.stack(list(rows)), None
    stacked = pad_sequence(list(rows), batch_first=True, padding_value=value)
    places = torch.arange(max(lengths), device=stacked.device)
    return stacked, places < torch.tensor(lengths, device=stacked.device)[:, None]


def unpad_rows(values: Tensor, keep: Tensor | None) -> list[Tensor]:
    """The real tokens of every row: (B, n, ...) -> B tensors (n_i, ...)."""
    if keep is None:
        return list(values.unbind(0))
    return [row[mask] for row, mask in zip(values, keep, strict=True)]


def spread(total: int, parts: int) -> list[int]:
    """Split `total` into `parts` equal shares; what is left over goes to the first ones.

    Example:
        >>> spread(10, 4)
        [3, 3, 2, 2]
    """
    share, rest = divmod(total, parts)
    return [share + (part < rest) for part in range(parts)]
