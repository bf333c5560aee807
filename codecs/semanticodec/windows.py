"""Long audio from windows: which tokens each window decodes, and how their waveforms are joined.

Windows of n tokens start every n - o tokens; neighbours share o tokens, over which their waveforms are cross-faded.
Dims: B batch, W windows, N tokens, n tokens per window, C channels, S samples.
Source: SemantiCodec (arXiv:2405.00233), released decoder.
Deviation: the released code joins windows of 163,872 samples although only 163,840 belong to their tokens, so that
every join shifts the rest by 2 ms. The decoder trims windows first, unless the official joins are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING = -1.0
"""Value of every feature behind the last token; the decoder attends to it and knows it by this value."""


def window_ranges(tokens: int, window: int, overlap: int) -> list[tuple[int, int]]:
    """Token ranges [start, end) that the windows decode; only the last may be shorter than a window.

    Args:
        tokens: Number of token positions (N), at least 1.
        window: Positions per window (n).
        overlap: Positions shared by neighbours (o).

    Raises:
        ValueError: no token, or an overlap that is not smaller than the window.

    Example:
        >>> window_ranges(617, 512, 32)
        [(0, 512), (480, 617)]
    """
    if tokens < 1:
        raise ValueError(f"nothing to decode: got {tokens} tokens")
    if not 0 <= overlap < window:
        raise ValueError(f"overlap must lie in 0..{window - 1} (window {window}), got {overlap}")
    hop = window - overlap
    starts = range(0, max(tokens - window, 0) + hop, hop)
    return [(start, min(start + window, tokens)) for start in starts if start == 0 or tokens - start > overlap]


def cut_windows(features: Tensor, ranges: Iterable[tuple[int, int]], window: int) -> Tensor:
    """Windows of `features` (B, N, C) as (B, W, n, C); positions behind the last token are `PADDING`."""
    cut = [F.pad(features[:, start:end], (0, 0, 0, window - (end - start)), value=PADDING) for start, end in ranges]
    return torch.stack(cut, dim=1)


def masked_tail(features: Tensor, lengths: Tensor) -> Tensor:
    """`features` (B, N, C) with `PADDING` from position lengths[b] on."""
    keep = torch.arange(features.shape[1], device=features.device) < lengths[:, None]
    return torch.where(keep[..., None], features, torch.full_like(features, PADDING))


def cross_fade(windows: Iterable[Tensor], overlap: int) -> Iterator[Tensor]:
    """Join waveforms piece by piece; holds one overlap in memory, whatever the length.

    Args:
        windows: Waveforms in order, (..., S_i), each longer than `overlap`.
        overlap: Samples that neighbours share; the earlier fades out and the later in, linearly, both ends included.

    Yields:
        Finished stretches, (..., S); concatenated they are the joined signal.

    Raises:
        ValueError: a window that is not longer than the overlap.
    """
    tail: Tensor | None = None
    for wave in windows:
        if wave.shape[-1] <= overlap:
            raise ValueError(f"a window of {wave.shape[-1]} samples cannot overlap by {overlap}")
        if tail is not None:
            rising = torch.linspace(0, 1, overlap, dtype=torch.float64, device=wave.device)
            mixed = tail.double() * rising.flip(0) + wave[..., :overlap].double() * rising
            wave = torch.cat([mixed.to(wave.dtype), wave[..., overlap:]], dim=-1)
        body = wave.shape[-1] - overlap
        if body:
            yield wave[..., :body]
        tail = wave[..., body:]
    if tail is not None:
        yield tail


def overlap_add(windows: Iterable[Tensor], overlap: int) -> Tensor:
    """`cross_fade`, as one tensor (..., S)."""
    return torch.cat(list(cross_fade(windows, overlap)), dim=-1)


def official_length(tokens: int, stack: int) -> int:
    """Samples that the released decoder keeps of `tokens` positions with `stack` patches per token.

    The formula is evaluated in floating point, which loses one sample for some counts; the exact value is
    320 stack tokens.
    """
    return int((tokens / 8) * 16 * 0.01 * stack * 16000)
