"""Rows of ids as batch tensors: padding, turning right padding into left, counting placeholders.

Dims: B samples, L tokens, T pictures of the whole batch, M visual tokens per picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

PaddingSide = Literal["left", "right"]


def pad_rows(rows: Sequence[Sequence[int]], value: int, side: PaddingSide) -> Tensor:
    """Rows of unequal length -> (B, L) int64, filled with `value`.

    Example:
        >>> pad_rows([[1, 2], [3]], 0, "left").tolist()
        [[1, 2], [0, 3]]
    """
    if side not in ("left", "right"):
        raise ValueError(f"padding_side must be 'left' or 'right', got {side!r}")
    length = max(map(len, rows), default=0)
    padded = torch.full((len(rows), length), value, dtype=torch.long)
    for index, row in enumerate(rows):
        start = length - len(row) if side == "left" else 0
        padded[index, start : start + len(row)] = torch.tensor(row, dtype=torch.long)
    return padded


def left_padded(attention_mask: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Move the real tokens of every row to its right end; their order stays.

    Args:
        attention_mask: 1 = token, 0 = padding anywhere, (B, L).
        others: Further (B, L) tensors to move along.

    Returns:
        The mask and the others, moved.
    """
    order = attention_mask.long().argsort(dim=1, stable=True)
    return tuple(tensor.gather(1, order) for tensor in (attention_mask, *others))


def positions_of(attention_mask: Tensor) -> Tensor:
    """Position ids that count real tokens from 0, (B, L) int64; padding gets 0."""
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)


def check_counts(
    input_ids: Tensor,
    image_token_id: int,
    *,
    pictures: int,
    tokens_per_picture: int,
    visual_counts: Tensor | None,
) -> None:
    """Compare placeholders with visual tokens, sample by sample, before anything is computed.

    Args:
        input_ids: (B, L).
        image_token_id: Id of the placeholder.
        pictures: Pictures in the batch (T).
        tokens_per_picture: Visual tokens of each (M).
        visual_counts: Pictures per sample, (B,); None: taken from the placeholders, only the sum is compared.

    Raises:
        ValueError: names the first sample that does not fit, and both counts.
    """
    found: list[int] = (input_ids == image_token_id).sum(dim=1).tolist()
    if visual_counts is None:
        if sum(found) != pictures * tokens_per_picture:
            raise ValueError(
                f"the batch has {sum(found)} image placeholders (per sample: {found}), but {pictures} pictures give "
                f"{pictures * tokens_per_picture} visual tokens"
            )
        uneven = [index for index, number in enumerate(found) if number % tokens_per_picture]
        if uneven:
            raise ValueError(
                f"sample {uneven[0]}: {found[uneven[0]]} image placeholders are no whole number of pictures of "
                f"{tokens_per_picture} visual tokens"
            )
        return
    counts: list[int] = visual_counts.tolist()
    if len(counts) != len(found):
        raise ValueError(f"visual_counts has {len(counts)} entries for a batch of {len(found)} samples")
    for index, (number, count) in enumerate(zip(found, counts, strict=True)):
        if number != count * tokens_per_picture:
            raise ValueError(
                f"sample {index}: {number} image placeholders in input_ids, but its {count} pictures give "
                f"{count * tokens_per_picture} visual tokens"
            )
    if sum(counts) != pictures:
        raise ValueError(f"visual_counts sums to {sum(counts)}, but pixel_values holds {pictures} pictures")
