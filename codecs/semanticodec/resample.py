"""Any sample rate to 16 kHz, block by block, with the same result as in one piece.

Rates with a small ratio use torchaudio's windowed sinc filter (what the released code resamples with). Odd ratios, such
as 44,101 Hz, would need a filter bank of gigabytes; they go through soxr.
Dims: C channels, S samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torchaudio
from torch import Tensor

from mm.codecs.semanticodec.config import SAMPLE_RATE
from mm.extras import require

LARGEST_BANK = 1 << 22
"""Filter coefficients (16 MB) up to which torchaudio's filter bank is used."""
LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000
_WIDTH, _ROLLOFF = 6, 0.99  # torchaudio's defaults


def check_rate(rate: int) -> None:
    """Refuse rates that no recording has.

    Raises:
        ValueError: not a whole number of Hz in the allowed range.
    """
    if rate != int(rate) or not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise ValueError(f"sample_rate must be a whole number of Hz in {LOWEST_RATE}..{HIGHEST_RATE}, got {rate}")


def resample(wave: Tensor, rate: int) -> Tensor:
    """Waveform (..., S) at `rate` Hz -> (..., ceil(16000 S / rate)) at 16 kHz.

    Raises:
        ValueError: an impossible rate.
    """
    check_rate(rate)
    if rate == SAMPLE_RATE:
        return wave
    flat = wave.reshape(-1, wave.shape[-1])
    return torch.cat(list(resample_blocks([flat], rate)), dim=-1).reshape(*wave.shape[:-1], -1)


def resample_blocks(blocks: Iterable[Tensor], rate: int) -> Iterator[Tensor]:
    """Blocks (C, S_i) at `rate` Hz -> blocks at 16 kHz; together they equal the resampled whole.

    Raises:
        ValueError: an impossible rate.
        ImportError: a rate with an odd ratio, and soxr is not installed.
    """
    check_rate(rate)
    divisor = math.gcd(rate, SAMPLE_RATE)
    source, target = rate // divisor, SAMPLE_RATE // divisor
    width = math.ceil(_WIDTH * source / (min(source, target) * _ROLLOFF))
    if source == target:
        yield from blocks
    elif target * (2 * width + source) <= LARGEST_BANK:
        yield from _by_filter_bank(blocks, source, target, width)
    else:
        yield from _by_soxr(blocks, rate)


def _by_filter_bank(blocks: Iterable[Tensor], source: int, target: int, width: int) -> Iterator[Tensor]:
    """Each step filters whole groups of `source` samples, with enough context on both sides."""
    context = -(-(width + source) // source) * source
    buffer: Tensor | None = None
    done = 0  # samples at the head of the buffer that were filtered already and serve as context
    for block in blocks:
        buffer = block.float() if buffer is None else torch.cat([buffer, block.float()], dim=-1)
        ready = (buffer.shape[-1] - done - context) // source * source
        if ready <= 0:
            continue
        found = _resample(buffer[..., : done + ready + context], source, target)
        yield found[..., done // source * target : (done + ready) // source * target]
        drop = max(done + ready - context, 0)
        buffer, done = buffer[..., drop:], done + ready - drop
    if buffer is not None and buffer.shape[-1] > done:
        yield _resample(buffer, source, target)[..., done // source * target :]


def _resample(wave: Tensor, source: int, target: int) -> Tensor:
    # Not the transform of the same name: it computes its filters in another precision than the released code.
    return torchaudio.functional.resample(wave, source, target, lowpass_filter_width=_WIDTH, rolloff=_ROLLOFF)


def _by_soxr(blocks: Iterable[Tensor], rate: int) -> Iterator[Tensor]:
    soxr = require("soxr", extra="audio", purpose=f"Resampling from {rate} Hz")
    stream: Any = None
    channels = 1
    for block in blocks:
        channels = len(block)
        stream = stream or soxr.ResampleStream(rate, SAMPLE_RATE, channels, dtype="float32")
        yield torch.from_numpy(stream.resample_chunk(block.float().T.contiguous().numpy())).T
    if stream is not None:
        nothing = torch.zeros(0, channels).numpy()
        yield torch.from_numpy(stream.resample_chunk(nothing, last=True)).T
