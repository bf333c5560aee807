"""Batches of made sounds for every training stage of the codec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mm.codecs.semanticodec.fbank import FRAME, LOOKAHEAD
from mm.codecs.semanticodec.sounds import sounds_batch
from mm.data.seeded_module import SeededBatches


@dataclass(frozen=True, kw_only=True)
class SoundDataConfig:
    """Made sounds, see `mm.codecs.semanticodec.sounds`."""

    samples: int = 20_480
    """Samples of a segment; 240 more are made, because the encoder's last frames look ahead."""
    batch_size: int = 32
    """Sounds per batch and process (B)."""
    held_out_batches: int = 4
    """Batches of the validation and test sets."""
    workers: int = 0
    """Loading processes."""

    def __post_init__(self) -> None:
        if self.samples < FRAME:
            raise ValueError(f"samples must be at least {FRAME}, got {self.samples}")


class SoundData(SeededBatches):
    """`waves` (B, samples + 240) float32 at 16 kHz, `domains` and `labels` (B,) int64."""

    def __init__(self, config: SoundDataConfig | None = None) -> None:
        self.config = config or SoundDataConfig()
        super().__init__(
            partial(sound_rows, self.config),
            batch_size=self.config.batch_size,
            held_out_batches=self.config.held_out_batches,
            workers=self.config.workers,
        )


def sound_rows(config: SoundDataConfig, seeds: Sequence[int]) -> dict[str, Tensor]:
    """The sounds of some seeds as one batch."""
    arrays = zip(("waves", "domains", "labels"), sounds_batch(seeds, config.samples + LOOKAHEAD), strict=True)
    return {name: torch.from_numpy(array) for name, array in arrays}
