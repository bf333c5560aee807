"""Take visual placeholders out of a prompt, in every table that belongs to it.

A prompt holds one placeholder per visual token of the unpruned picture. Once tokens are dropped, the same places go
from ids, mask, labels and positions. Rows of a batch then differ in length: they are padded on the left, so that the
last column stays the last token, which is what generation reads.
Dims: B prompts, L tokens, M tokens that are left (longest prompt), R rows of multimodal positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

IGNORED = -100
"""Label of a position that trains nothing."""


def image_numbers(input_ids: Tensor, image_token: int, counts: Sequence[int]) -> Tensor:
    """Which picture each token belongs to.

    Args:
        input_ids: (B, L).
        image_token: Id of the placeholder.
        counts: Visual tokens of every picture of the batch, in the order of the prompts.

    Returns:
        (B, L) int64: number of the picture within the whole batch, -1 for text and padding.

    Raises:
        ValueError: placeholders and visual tokens differ in number; names the prompt.
    """
    is_image = input_ids == image_token
    per_row = is_image.sum(dim=1).tolist()
    numbers = torch.full_like(input_ids, -1, dtype=torch.long)
    picture = 0
    for row, wanted in enumerate(per_row):
        first, found = picture, 0
        while found < wanted and picture < len(counts):
            found += counts[picture]
            picture += 1
        if found != wanted:
            raise ValueError(
                f"prompt {row} holds {wanted} image placeholders, its pictures have {found} visual tokens; prepare "
                "text and pictures with the same processor"
            )
        sizes = torch.tensor(counts[first:picture], dtype=torch.long)
        owner = torch.arange(first, picture).repeat_interleave(sizes)
        numbers[row, is_image[row]] = owner.to(numbers.device)
    if picture != len(counts):
        raise ValueError(f"{len(counts)} pictures were given, the prompts have room for {picture}")
    return numbers


def keep_placeholders(input_ids: Tensor, image_token: int, counts: Sequence[int], kept: Sequence[Tensor]) -> Tensor:
    """True for text, padding, and the placeholders that stay: (B, L) bool.

    Args:
        input_ids: (B, L).
        image_token: Id of the placeholder.
        counts: Visual tokens of every unpruned picture.
        kept: For every picture the numbers (0-based, within the picture) of the placeholders that stay, (n_i,).
    """
    numbers = image_numbers(input_ids, image_token, counts)
    keep = torch.ones_like(numbers, dtype=torch.bool)
    flags = []
    for count, chosen in zip(counts, kept, strict=True):
        flag = torch.zeros(count, dtype=torch.bool, device=keep.device)
        flag[chosen.to(keep.device)] = True
        flags.append(flag)
    # placeholders in reading order are the pictures' tokens in order
    keep[numbers >= 0] = torch.cat(flags)
    return keep


def left_packed(keep: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of the kept tokens in order, padded on the left.

    Args:
        keep: (B, L) bool.

    Returns:
        Columns (B, M) int64 (0 where padded) and a mask of those that are real (B, M) bool.
    """
    width = int(keep.sum(dim=1).max())
    places = torch.arange(keep.shape[1], device=keep.device)
    columns = torch.where(keep, places, -1).sort(dim=1).values[:, keep.shape[1] - width :]
    return columns.clamp(min=0), columns >= 0


def shorten(inputs: dict[str, Any], keep: Tensor, pad_token: int) -> dict[str, Any]:
    """Drop columns from every table of a prompt.

    Args:
        inputs: Keyword arguments of a model; `input_ids` is required. `attention_mask`, `labels`, `position_ids`
            ((B, L) or (R, B, L)) and `mm_token_type_ids` are shortened where present, the rest is passed on.
        keep: True for the columns that stay, (B, L) bool.
        pad_token: Id for padding.

    Returns:
        A new dict; `attention_mask` is always set.
    """
    columns, real = left_packed(keep)
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(inputs["input_ids"]) if mask is None else mask
    short = dict(inputs)
    short["attention_mask"] = mask.gather(1, columns) * real.to(mask.dtype)
    short["input_ids"] = inputs["input_ids"].gather(1, columns).masked_fill(~real, pad_token)
    for name, fill in (("labels", IGNORED), ("mm_token_type_ids", 0)):
        if inputs.get(name) is not None:
            short[name] = inputs[name].gather(1, columns).masked_fill(~real, fill)
    if inputs.get("position_ids") is not None:
        positions = inputs["position_ids"]
        index = columns if positions.ndim == 2 else columns.expand(len(positions), -1, -1)
        expanded = positions.expand(*positions.shape[:-2], len(columns), -1)
        short["position_ids"] = expanded.gather(-1, index).masked_fill(~real, 0)
    return short
