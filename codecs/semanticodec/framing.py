"""A recording of any length as segments of mel frames: mono, 16 kHz, bounded memory, identical to one piece.

Dims: C channels, S samples, B segments, T frames, F mel bins.
Source: the released code frames the whole zero-padded file; the last two frames of a segment see the next one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mm.codecs.semanticodec.config import EncoderConfig
from mm.codecs.semanticodec.fbank import LOOKAHEAD, PAD_VALUE, FilterBank
from mm.codecs.semanticodec.lengths import LengthMode, segment_count

Channel = Literal["mean", "first"]
MISSING_FRAMES = 2
"""Frames at the end of the last segment that would reach beyond the padded file."""


class Segment(NamedTuple):
    """Samples under one segment and whether the recording ends inside it."""

    wave: Tensor
    """(segment samples + 240,), zero behind the end of the recording."""
    last: bool
    """True if the recording ends before the segment does."""


def to_mono(wave: Tensor, channel: Channel = "mean") -> Tensor:
    """One channel (S,) of (C, S): their mean, or the first as the released code takes.

    Raises:
        ValueError: samples that are not numbers, or an unknown rule.
    """
    if channel not in ("mean", "first"):
        raise ValueError(f"channel must be 'mean' or 'first', got {channel!r}")
    mono = wave[0] if channel == "first" else wave.mean(0)
    bad = (~wave.isfinite()).sum()
    if bad:
        raise ValueError(f"the waveform holds {int(bad)} samples that are not finite numbers (NaN or infinite)")
    return mono


def cut_segments(blocks: Iterable[Tensor], config: EncoderConfig, mode: LengthMode = "exact") -> Iterator[Segment]:
    """Segments of mono blocks (S_i,) at 16 kHz; holds one block and one segment.

    Args:
        blocks: The recording in order.
        config: Grid of the encoder.
        mode: `official` ends a recording of exactly whole segments with a silent one.

    Raises:
        ValueError: no samples at all.
    """
    size = config.segment_samples
    buffer, total, yielded = torch.zeros(0), 0, 0
    for block in blocks:
        buffer = torch.cat([buffer, block])
        total += len(block)
        while len(buffer) >= size + LOOKAHEAD:
            yield Segment(buffer[: size + LOOKAHEAD], last=False)
            buffer, yielded = buffer[size:], yielded + 1
    for index in range(yielded, segment_count(total, config, mode)):
        yield Segment(
            F.pad(buffer, (0, max(size + LOOKAHEAD - len(buffer), 0)))[: size + LOOKAHEAD], index == total // size
        )
        buffer = buffer[size:]


def segment_frames(segments: list[Segment], bank: FilterBank, device: torch.device | str = "cpu") -> Tensor:
    """Mel frames of some segments, (B, T, F)."""
    frames = bank(torch.stack([segment.wave for segment in segments]).to(device))
    last = torch.tensor([segment.last for segment in segments], device=device)
    missing = last[:, None] & (torch.arange(frames.shape[1], device=device) >= frames.shape[1] - MISSING_FRAMES)
    return frames.masked_fill(missing[..., None], PAD_VALUE)
