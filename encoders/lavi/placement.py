"""Interleaved input: where the pictures stand in the text.

The sequence inside the language model stays text only, so an image placeholder is taken out (or kept as one ordinary
token that gives the place an anchor) and its position becomes a number: how many text tokens stand in front of it. With
`VisualContext.placed(...)` a text token then sees exactly the images placed before it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class Placement(NamedTuple):
    """Text without placeholders and the places of the images."""

    input_ids: Tensor
    """(B, N) integer, padded on the side that was asked for."""
    attention_mask: Tensor
    """True = real, (B, N) bool."""
    image_starts: Tensor
    """Text tokens in front of each image, (B, I) integer; rows with fewer images are filled with zeros."""
    labels: Tensor | None
    """(B, N) integer with -100 on padding, if labels were given."""


def strip_placeholders(
    input_ids: Tensor,
    image_token_id: int,
    *,
    attention_mask: Tensor | None = None,
    labels: Tensor | None = None,
    keep: bool = False,
    pad_token_id: int = 0,
    padding_side: str = "right",
) -> Placement:
    """Take image placeholders out of a batch of token ids.

    Args:
        input_ids: (B, N) integer; every `image_token_id` stands for one image.
        image_token_id: The placeholder.
        attention_mask: True or 1 = real, (B, N); padding is removed and made anew.
        labels: Training targets (B, N), cut along.
        keep: Keep each placeholder as one ordinary token; it already sees its own image.
        pad_token_id: Fills shorter rows.
        padding_side: "right" or "left" (for generation).

    Raises:
        ValueError: unknown padding side.

    Example:
        >>> placed = strip_placeholders(torch.tensor([[5, 9, 6, 9, 7]]), image_token_id=9)
        >>> placed.input_ids.tolist(), placed.image_starts.tolist()
        ([[5, 6, 7]], [[1, 2]])
    """
    if padding_side not in ("left", "right"):
        raise ValueError(f"padding_side must be 'left' or 'right', got {padding_side!r}")
    real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    rows, starts, targets = [], [], []
    for i, (row, row_real) in enumerate(zip(input_ids, real, strict=True)):
        row = row[row_real]
        image = row == image_token_id
        stays = torch.ones_like(image) if keep else ~image
        before = stays.long().cumsum(0) - stays.long()  # kept tokens in front of each one
        rows.append(row[stays])
        starts.append(before[image])
        if labels is not None:
            targets.append(labels[i][row_real][stays])

    def padded(parts: list[Tensor], value: int) -> Tensor:
        return pad_sequence(parts, batch_first=True, padding_value=value, padding_side=padding_side)

    return Placement(
        input_ids=padded(rows, pad_token_id),
        attention_mask=padded([torch.ones_like(row, dtype=torch.bool) for row in rows], 0),
        image_starts=pad_sequence(starts, batch_first=True),
        labels=padded(targets, -100) if labels is not None else None,
    )
