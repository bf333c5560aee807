"""Which cells and words are hidden in pre-training: random, blocks, tubes, attended places.

Every function is a pure function of its arguments and the generator; masks say True = visible.
Source: VIOLET (arXiv:2111.12681), VIOLETv2 (arXiv:2209.01540); tubes are not theirs.
Dims: B batch, T frames, h w cells, N video tokens, X text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange, repeat
from torch import Tensor

Shape4 = tuple[int, int, int, int]
RATIO = 0.15
"""Share of cells and words that random masks hide."""


def random_keep(shape: Shape4, generator: torch.Generator, ratio: float = RATIO) -> Tensor:
    """`rm`: each cell is hidden with probability `ratio`; (B, T, h, w) bool."""
    return torch.rand(shape, generator=generator) >= ratio


def tube_keep(shape: Shape4, generator: torch.Generator, ratio: float = RATIO) -> Tensor:
    """`tube`: the same cells on all frames; (B, T, h, w) bool."""
    batch, frames, height, width = shape
    return repeat(torch.rand(batch, height, width, generator=generator) >= ratio, "b h w -> b t h w", t=frames)


def block_keep(shape: Shape4, generator: torch.Generator, ratio: float = RATIO) -> Tensor:
    """`bm`: the union of T boxes is hidden; (B, T, h, w) bool.

    A box lasts 1 to T - 1 frames (1 when T = 1) and its sides are 1 to floor(2 h / 3) - 1 cells, all uniform, as is its
    place. The share follows from that (15.1 % for four frames of 7 x 7); `ratio` has no part in it.
    """
    batch, frames, height, width = shape
    longest = (max(1, frames - 1), max(1, 2 * height // 3 - 1), max(1, 2 * width // 3 - 1))
    spans = [_spans((batch, frames), size, top, generator) for size, top in zip(shape[1:], longest, strict=True)]
    time, row, column = spans  # each (B, boxes, size of the axis)
    boxes = time[..., :, None, None] & row[..., None, :, None] & column[..., None, None, :]
    return ~boxes.any(1)


MASKERS = {"rm": random_keep, "bm": block_keep, "tube": tube_keep}
"""Masks that need nothing but the shape."""


def video_keep(
    shape: Shape4, generator: torch.Generator, kinds: Sequence[str] = ("rm", "bm"), ratio: float = RATIO
) -> Tensor:
    """A mask of cells; each sample draws its kind uniformly from `kinds`.

    Args:
        shape: (B, T, h, w).
        generator: On the CPU; the same state gives the same mask.
        kinds: Of "rm", "bm", "tube".
        ratio: Share that "rm" and "tube" hide.

    Returns:
        True where a cell is visible, (B, T, h, w) bool.

    Raises:
        ValueError: unknown kind, or a ratio outside [0, 1].
    """
    unknown = [kind for kind in kinds if kind not in MASKERS]
    if unknown or not kinds:
        raise ValueError(f"kinds must be of {', '.join(MASKERS)}, got {tuple(kinds)}; for 'am' use attended_keep")
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio must lie in [0, 1], got {ratio}")
    masks = torch.stack([MASKERS[kind](shape, generator, ratio) for kind in kinds])
    drawn = torch.randint(len(kinds), (shape[0],), generator=generator)
    return masks[drawn, torch.arange(shape[0])]


def covered_keep(covered: Tensor, side: int) -> Tensor:
    """`thing`: hides every cell that a thing touches.

    Args:
        covered: Patches that the thing touches, (B, T, r h, r w) bool.
        side: Patches along a side of a cell (r).

    Returns:
        True where a cell is visible, (B, T, h, w) bool.
    """
    return ~rearrange(covered, "b t (h p) (w q) -> b t h w (p q)", p=side, q=side).any(-1)


def attended_keep(
    received: Tensor, maskable: Tensor, words: int, generator: torch.Generator, ratio: float = RATIO
) -> Tensor:
    """`am`: places are hidden in proportion to the attention they receive, video and text in one draw.

    int(ratio * places) places are drawn without replacement from the maskable ones. A sample in which no word
    was drawn is masked at random instead.

    Args:
        received: Attention received (`EViLM.received_attention`), (B, N + X), video first; at least 0.
        maskable: False at class tokens, special words and padding, (B, N + X) bool.
        words: Text tokens (X), the last places.
        generator: On the CPU.
        ratio: Share to hide.

    Returns:
        True where a place is visible, (B, N + X) bool, on the CPU.
    """
    received, maskable = received.detach().float().cpu(), maskable.cpu()
    noise = -torch.log(-torch.log(torch.rand(received.shape, generator=generator).clamp(1e-20, 1 - 1e-7)))
    keys = (received.clamp(min=1e-20).log() + noise).masked_fill(~maskable, -torch.inf)  # Gumbel top-k
    chosen = keys.topk(int(ratio * received.shape[1]), dim=1).indices
    hidden = torch.zeros_like(maskable).scatter(1, chosen, True) & maskable
    at_random = (torch.rand(received.shape, generator=generator) < ratio) & maskable
    return ~torch.where(hidden[:, -words:].any(1, keepdim=True), hidden, at_random)


def mask_words(
    input_ids: Tensor, special: Sequence[int], mask_id: int, generator: torch.Generator, ratio: float = RATIO
) -> tuple[Tensor, Tensor]:
    """Replace words by the mask token; every chosen word, never a special one.

    Args:
        input_ids: (B, X) int64.
        special: Ids that stay: class, separator, padding, mask.
        mask_id: Id of the mask token.
        generator: On the CPU.
        ratio: Probability of each word.

    Returns:
        Masked ids, and labels: the word where it was replaced, -100 elsewhere; both (B, X) int64.
    """
    drawn = (torch.rand(input_ids.shape, generator=generator) < ratio).to(input_ids.device)
    drawn &= ~torch.isin(input_ids, torch.tensor([*special, mask_id], device=input_ids.device))
    return input_ids.masked_fill(drawn, mask_id), input_ids.masked_fill(~drawn, -100)


def _spans(count: tuple[int, int], size: int, longest: int, generator: torch.Generator) -> Tensor:
    """Random intervals on an axis of `size` places, length uniform in 1..longest; (*count, size) bool."""
    length = torch.randint(1, min(longest, size) + 1, count, generator=generator)
    start = (torch.rand(count, generator=generator) * (size - length + 1)).long()
    place = torch.arange(size)
    return (place >= rearrange(start, "b n -> b n 1")) & (place < rearrange(start + length, "b n -> b n 1"))
