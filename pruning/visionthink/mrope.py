"""Multimodal rotary positions of a conversation with any number of pictures (Qwen2-VL, Qwen2.5-VL).

Text advances all three axes together. A picture stands still in time and counts rows and columns of its merged grid
from its start; the text behind it goes on at one more than the largest position so far.
Computed here and handed to the model, because the state that `generate` keeps for it does not survive a second picture.
Dims: B rows, N tokens, P pictures.
Source: Qwen2-VL (Wang et al. 2024, arXiv:2409.12191), section 2.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PADDED = 1
"""Position of padding, on all axes."""


def mrope_positions(
    input_ids: Tensor,
    grids: Sequence[Tensor | Sequence[Sequence[int]]],
    *,
    image_token_id: int,
    attention_mask: Tensor | None = None,
    merge: int = 2,
) -> Tensor:
    """Positions on the axes time, height and width.

    Args:
        input_ids: (B, N) with every picture already expanded to its tokens.
        grids: For every row its pictures in order, (P, 3) patches as (frames, rows, columns) before merging.
        image_token_id: The token a picture is made of.
        attention_mask: True at real tokens, (B, N); padding may stand on either side.
        merge: Patches per side of one visual token.

    Returns:
        (3, B, N) int64; 1 at padding.

    Raises:
        ValueError: image tokens and grids do not fit; the row is named.
    """
    keep = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    if len(grids) != len(input_ids):
        raise ValueError(f"{len(input_ids)} rows, but grids for {len(grids)}")
    positions = torch.full((3, *input_ids.shape), PADDED, dtype=torch.int64, device=input_ids.device)
    for row, (ids, real, pictures) in enumerate(zip(input_ids, keep, grids, strict=True)):
        sizes = [tuple(int(n) for n in grid) for grid in pictures]
        try:
            found = _row(ids[real].tolist(), sizes, image_token_id, merge)
        except ValueError as error:
            raise ValueError(f"row {row}: {error}") from error
        positions[:, row, real] = found.to(input_ids.device)
    return positions


def _row(ids: list[int], grids: list[tuple[int, ...]], image_token_id: int, merge: int) -> Tensor:
    """Positions (3, N) of one row without padding."""
    parts, start, at = [torch.empty(3, 0, dtype=torch.int64)], 0, 0
    for frames, rows, columns in grids:
        try:
            first = ids.index(image_token_id, at)
        except ValueError:
            raise ValueError(f"{len(grids)} pictures, but image tokens for fewer") from None
        parts.append(_text(start, first - at))
        start += first - at
        shape = (frames, rows // merge, columns // merge)
        count = shape[0] * shape[1] * shape[2]
        if ids[first : first + count] != [image_token_id] * count:
            raise ValueError(f"a picture of {frames} x {rows} x {columns} patches needs {count} image tokens in a run")
        axes = torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")
        parts.append(start + torch.stack(axes).flatten(1))  # (3, count)
        start += max(shape)
        at = first + count
    if image_token_id in ids[at:]:
        raise ValueError(f"image tokens for more than {len(grids)} pictures")
    parts.append(_text(start, len(ids) - at))
    return torch.cat(parts, 1)


def _text(start: int, count: int) -> Tensor:
    return torch.arange(start, start + count).expand(3, count)
