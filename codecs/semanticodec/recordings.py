"""What users hand over as sound, as a list of (C, S) tensors.

Dims: B recordings, C channels, S samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Wave = Tensor | np.ndarray


def recordings_of(wave: Wave | Sequence[Wave], lengths: Sequence[int] | Tensor | None = None) -> list[Tensor]:
    """Recordings (C, S) float32.

    Args:
        wave: (S,) or (B, S) mono, (B, C, S), or a list of (S,) and (C, S). Integer samples are refused.
        lengths: Samples of each row of a padded batch.

    Raises:
        ValueError: nothing, other shapes, integers, or lengths that do not fit.
    """
    if isinstance(wave, Tensor | np.ndarray):
        batch = _as_float(wave)
        if batch.ndim not in (1, 2, 3):
            raise ValueError(f"a waveform must be (S,), (B, S) or (B, C, S), got shape {tuple(batch.shape)}")
        batch = batch.reshape(1, 1, -1) if batch.ndim == 1 else batch[:, None] if batch.ndim == 2 else batch
        found = list(batch)
    else:
        found = [_channels_first(_as_float(entry), index) for index, entry in enumerate(wave)]
    if not found:
        raise ValueError("there is no recording in the batch")
    return found if lengths is None else _cut(found, lengths)


def _as_float(wave: Wave) -> Tensor:
    found = torch.as_tensor(wave)
    if not found.is_floating_point():
        raise ValueError(
            f"samples must be floating-point numbers in [-1, 1], got {found.dtype}; divide 16-bit integers by 32768"
        )
    return found.float()


def _channels_first(wave: Tensor, index: int) -> Tensor:
    if wave.ndim not in (1, 2):
        raise ValueError(f"recording {index} must be (S,) or (C, S), got shape {tuple(wave.shape)}")
    return wave[None] if wave.ndim == 1 else wave


def _cut(found: list[Tensor], lengths: Sequence[int] | Tensor) -> list[Tensor]:
    ends = [int(length) for length in lengths]
    if len(ends) != len(found):
        raise ValueError(f"lengths names {len(ends)} recordings, the batch holds {len(found)}")
    for index, (recording, end) in enumerate(zip(found, ends, strict=True)):
        if not 0 <= end <= recording.shape[-1]:
            raise ValueError(f"recording {index}: length {end} is outside 0..{recording.shape[-1]} samples")
    return [recording[:, :end] for recording, end in zip(found, ends, strict=True)]
