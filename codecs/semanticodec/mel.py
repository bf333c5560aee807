"""Decoder front end: the log mel spectrogram that the VAE compresses and the vocoder turns back into sound.

Reflection of 432 samples at both ends, periodic Hann window of 1024, magnitude spectrum, 64 Slaney filters 0-8 kHz,
natural logarithm of at least 1e-5. 163840 samples give exactly 1024 frames. Only training and metrics need it.
Dims: B files, S samples, T frames, F mel bins.
Source: AudioLDM 2 (Liu et al. 2023, arXiv:2308.05734), 16-kHz configuration.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn

from mm.codecs.semanticodec.config import HOP, SAMPLE_RATE

WINDOW = 1024
FLOOR = 1e-5
"""Smallest magnitude in front of the logarithm."""


class LogMel(nn.Module):
    """Waveforms -> log mel spectrogram.

    Example:
        >>> LogMel()(torch.zeros(2, 163840)).shape
        torch.Size([2, 1024, 64])
    """

    window: Tensor
    filters: Tensor

    def __init__(self, mel_bins: int = 64) -> None:
        super().__init__()
        filters = torchaudio.functional.melscale_fbanks(
            WINDOW // 2 + 1, 0.0, SAMPLE_RATE / 2, mel_bins, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
        )
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("filters", filters, persistent=False)  # (513, F)

    def forward(self, wave: Tensor) -> Tensor:
        """Log mel magnitudes.

        Args:
            wave: Samples at 16 kHz, (B, S) float32, S a multiple of 160 and more than 432.

        Returns:
            (B, S / 160, F) float32, natural logarithm, at least ln 1e-5.
        """
        margin = (WINDOW - HOP) // 2
        with torch.autocast(wave.device.type, enabled=False):
            padded = F.pad(wave.float()[:, None], (margin, margin), mode="reflect")[:, 0]
            spectrum = torch.stft(padded, WINDOW, HOP, window=self.window, center=False, return_complex=True)
            mel = spectrum.abs().transpose(1, 2) @ self.filters
        return mel.clamp(min=FLOOR).log()
