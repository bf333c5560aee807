"""Encoder front end: Kaldi-style log mel filter bank, batched, and which of its frames hold sound.

25-ms frames every 10 ms, per-frame mean removed, pre-emphasis 0.97, symmetric Hann window, power spectrum of 512
points, 128 triangles on the scale 1127 ln(1 + f/700) from 20 Hz to 8 kHz, natural logarithm, fixed normalisation. A
frame depends on its own 400 samples alone: a file cut between frames needs 240 samples of what follows, nothing else.
Dims: B files, S samples, T frames, F mel bins.
Source: AudioMAE's input (Huang et al. 2022, arXiv:2207.06405) as SemantiCodec uses it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm.codecs.semanticodec.config import HOP, SAMPLE_RATE

FRAME = 400
"""Samples under one frame (25 ms)."""
LOOKAHEAD = FRAME - HOP
"""Samples behind a block of frames that its last frames still see."""
FFT = 512
PREEMPHASIS = 0.97
LOW_HZ = 20.0
FLOOR = 1.1920928955078125e-07
"""Smallest mel power in front of the logarithm (float32 epsilon)."""
MEAN, SPREAD = -4.2677393, 4.5689974
"""Normalisation of AudioSet: (x - MEAN) / (2 SPREAD)."""
PAD_VALUE = -MEAN / (2 * SPREAD)
"""A frame that does not exist (zero in front of the normalisation): 0.46703."""
SILENCE_VALUE = (math.log(FLOOR) - MEAN) / (2 * SPREAD)
"""A frame of digital silence: -1.27760."""
FLAT = 1e-7
"""Largest spread over the mel bins of a frame without sound."""


def mel_filters(bins: int = 128) -> Tensor:
    """Triangular filters over the 257 bins of the spectrum, (F, 257); the Nyquist bin weighs nothing.

    Computed in float64: the mel scale loses four digits to cancellation at its lower end in float32.
    """

    def mel(frequency: Tensor) -> Tensor:
        return 1127 * torch.log1p(frequency / 700)

    low, high = mel(torch.tensor([LOW_HZ, SAMPLE_RATE / 2], dtype=torch.float64))
    edges = low + (high - low) / (bins + 1) * torch.arange(bins + 2, dtype=torch.float64)  # (F + 2)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    places = mel(torch.arange(FFT // 2, dtype=torch.float64) * SAMPLE_RATE / FFT)
    rising, falling = (places - left) / (centre - left), (right - places) / (right - centre)
    return F.pad(torch.minimum(rising, falling).clamp(min=0), (0, 1)).float()


class FilterBank(nn.Module):
    """Waveforms -> normalised log mel frames.

    Example:
        >>> FilterBank()(torch.zeros(1, 163840)).shape
        torch.Size([1, 1022, 128])
    """

    window: Tensor
    filters: Tensor

    def __init__(self, mel_bins: int = 128) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(FRAME, periodic=False), persistent=False)
        self.register_buffer("filters", mel_filters(mel_bins), persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        """Frames that fit wholly into the waveform.

        Args:
            wave: Samples at 16 kHz in [-1, 1], (B, S) float32, S at least 400.

        Returns:
            Frames, (B, T, F) float32, T = 1 + (S - 400) // 160.
        """
        with torch.autocast(wave.device.type, enabled=False):
            frames = wave.float().unfold(-1, FRAME, HOP)  # (B, T, 400)
            frames = frames - frames.mean(-1, keepdim=True)
            before = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
            frames = (frames - PREEMPHASIS * before) * self.window
            power = torch.fft.rfft(frames, n=FFT).abs().square()  # (B, T, 257)
            mel = power @ self.filters.T
            return (mel.clamp(min=FLOOR).log() - MEAN) / (2 * SPREAD)


def frames_kept(frames: Tensor) -> Tensor:
    """Frames of each segment up to the last one with sound; what follows is padding.

    Silence inside a segment counts as sound, silence at its end as padding. A segment with a single sounding frame is
    empty: the released code takes an exception path there, and its tokens depend on it.

    Args:
        frames: Segments of the filter bank, (B, T, F).

    Returns:
        Number of kept frames, (B,) int64.
    """
    sounding = frames.double().std(-1) > FLAT  # (B, T); float32 would see rounding noise in constant frames
    place = torch.arange(1, frames.shape[1] + 1, device=frames.device)
    last = (sounding * place).amax(-1)
    return torch.where(sounding.sum(-1) > 1, last, 0)
