"""Batches of phantoms for pre-training: whole scans with reports, and corrupted views of crops.

Samples come in twins: number 2 i + 1 is number 2 i with one attribute changed, so every batch holds the hardest wrong
partner of each report and the model's own mining finds it. Dims: B samples, N edge of the whole volume, M of the crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from mm.data.seeded_module import SeededBatches
from mm.medical.phantom_reports import report, vocabulary
from mm.medical.phantoms import Case, change_one, draw_case, render
from mm.medical.velvet.corruption import CorruptionConfig, make_views
from mm.medical.velvet.tokenizer import SPECIAL, SentenceTokenizer
from mm.medical.velvet.volume_views import global_volume, local_volume

WINDOW_HU = (-175.0, 250.0)
"""Intensities that become 0 and 1."""
MAX_SENTENCES, MAX_TOKENS = 10, 96
"""Room for every report that the phantoms can have."""


@dataclass(frozen=True, kw_only=True)
class PhantomConfig:
    """Phantoms for pre-training."""

    size: int = 36
    """Edge of the rendered phantom and of the whole volume (N), voxels."""
    crop: int = 18
    """Edge of the crop for the self-supervised views (M), voxels; 0 leaves the views out."""
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    """How the views are destroyed."""
    batch_size: int = 16
    """Samples per batch and process (B), even."""
    held_out_batches: int = 4
    """Batches of the validation and test sets."""
    workers: int = 0
    """Loading processes."""

    def __post_init__(self) -> None:
        if self.batch_size % 2:
            raise ValueError(f"batch_size must be even, samples come in twins; got {self.batch_size}")
        if not 0 <= self.crop <= self.size:
            raise ValueError(f"crop must lie between 0 and size={self.size}, got {self.crop}")


class PhantomData(SeededBatches):
    """Lightning data module of phantom batches, see `phantom_batch`.

    Args:
        config: Sizes.
    """

    def __init__(self, config: PhantomConfig | None = None) -> None:
        self.config = config or PhantomConfig()
        super().__init__(
            partial(phantom_batch, config=self.config),
            batch_size=self.config.batch_size,
            held_out_batches=self.config.held_out_batches,
            workers=self.config.workers,
        )


@cache
def phantom_tokenizer() -> SentenceTokenizer:
    """Tokenizer over the closed vocabulary of the phantom reports."""
    return SentenceTokenizer(
        [*SPECIAL, *vocabulary()], max_sentences=MAX_SENTENCES, max_sentence_tokens=40, max_tokens=MAX_TOKENS
    )


def twin_case(seed: int) -> Case:
    """The case of a seed: an even one is drawn, an odd one is the case before it with one attribute changed."""
    case = draw_case(seed - seed % 2)
    return change_one(case, seed) if seed % 2 else case


def windowed(hu: np.ndarray) -> Tensor:
    """Intensities in HU (X, Y, Z) -> (1, X, Y, Z) float in 0 .. 1."""
    low, high = WINDOW_HU
    return torch.from_numpy(np.clip((hu.astype(np.float32) - low) / (high - low), 0, 1))[None]


def phantom_batch(seeds: Sequence[int], config: PhantomConfig, length: int = MAX_TOKENS) -> dict[str, Tensor]:
    """The phantoms of consecutive seeds.

    Returns:
        `volume` (B, 1, N, N, N), the fields of `TokenBatch` (B, length), and with a crop `corrupted` and `target`
        (2 B, 1, M, M, M) and `turns` (2 B,).
    """
    cases = [twin_case(seed) for seed in seeds]
    scans = [windowed(render(case, config.size).hu) for case in cases]
    texts = [report(case) for case in cases]
    volumes = torch.stack([global_volume(scan, config.size) for scan in scans])
    batch = {"volume": volumes, **phantom_tokenizer()(texts, length=length).to_dict()}
    if config.crop:
        generator = torch.Generator().manual_seed(int(seeds[0]))
        crops = torch.stack([local_volume(scan, config.crop, generator) for scan in scans])
        batch |= make_views(crops, generator, config.corruption).__dict__
    return batch
