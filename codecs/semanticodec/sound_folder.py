"""Batches of your own recordings for every training stage of the codec.

    mm fit --config semanticodec/folder --data.config.train sounds/ --out runs/codec

Any format that `mm codec` reads. Recordings are decoded once and kept as 16-bit samples at 16 kHz: 115 MB per hour.
Dims: B segments, S samples.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mm.codecs.semanticodec.audio import SUFFIXES
from mm.codecs.semanticodec.config import SAMPLE_RATE
from mm.codecs.semanticodec.fbank import FRAME, LOOKAHEAD
from mm.codecs.semanticodec.round_trip import read_wave
from mm.codecs.semanticodec.sounds import DOMAINS
from mm.command import progress
from mm.data.reading import OnError
from mm.data.seeded_module import SeededBatches
from mm.data.split import SplitName, split_of

logger = logging.getLogger(__name__)
HELD_OUT_EVERY = 10
"""Without a validation folder, every tenth recording (at least one) is kept for validation and test."""


@dataclass(frozen=True, kw_only=True)
class SoundFolderConfig:
    """Where recordings lie and how segments are taken from them."""

    train: str = ""
    """Folder of recordings; those below folders called general, speech or music belong to that domain."""
    validation: str = ""
    """The same for validation and test; default: every tenth recording of `train`, which is then not trained on."""
    samples: int = 20_480
    """Samples of a segment at 16 kHz, 1.28 s; 240 more are taken, because the encoder's last frames look ahead."""
    on_error: OnError = "raise"
    """Stop at a recording that cannot be read, or log and count it."""
    batch_size: int = 8
    """Segments per batch and process (B)."""
    held_out_batches: int = 2
    """Batches of the validation and test sets."""
    workers: int = 0
    """Loading processes."""

    def __post_init__(self) -> None:
        if self.samples < FRAME:
            raise ValueError(f"samples must be at least {FRAME}, got {self.samples}")


@dataclass(frozen=True)
class Recordings:
    """Decoded recordings of one part."""

    waves: list[np.ndarray]
    """(S,) int16 each."""
    domains: list[int]
    """Places in `DOMAINS`."""

    @property
    def seconds(self) -> float:
        """Length of all of them."""
        return sum(map(len, self.waves)) / SAMPLE_RATE

    def segment(self, seed: int, samples: int) -> tuple[np.ndarray, int, int]:
        """A segment (samples,) float32, its domain and the number of its recording, decided by the seed alone.

        Every second of sound is as likely as any other. A shorter recording is followed by silence.
        """
        draw = np.random.default_rng([seed])
        lengths = np.array([len(wave) for wave in self.waves], dtype=np.float64)
        number = int(draw.choice(len(self.waves), p=lengths / lengths.sum()))
        wave = self.waves[number]
        start = int(draw.integers(max(len(wave) - samples, 0) + 1))
        piece = wave[start : start + samples].astype(np.float32) / 32768
        return np.pad(piece, (0, samples - len(piece))), self.domains[number], number


class SoundFolder(SeededBatches):
    """`waves` (B, samples + 240) float32 at 16 kHz, `domains` and `labels` (number of the recording) (B,) int64."""

    def __init__(self, config: SoundFolderConfig | None = None) -> None:
        self.config = config or SoundFolderConfig()
        super().__init__(
            self.rows,
            batch_size=self.config.batch_size,
            held_out_batches=self.config.held_out_batches,
            workers=self.config.workers,
        )
        self._parts: dict[SplitName, Recordings] = {}

    def setup(self, stage: str | None = None) -> None:
        """Decode the recordings.

        Raises:
            FileNotFoundError: no such folder.
            ValueError: too few recordings, or one that cannot be read; the message names it.
        """
        if self._parts:
            return
        config = self.config
        training, held_out = divided(config)
        held = read_recordings(held_out, config.validation or config.train, config.on_error)
        own = read_recordings(training, config.train, config.on_error)
        logger.info("%.1f s of sound to train on, %.1f s held out", own.seconds, held.seconds)
        self._parts = {"train": own, "validation": held, "test": held}

    def rows(self, seeds: Sequence[int]) -> dict[str, Tensor]:
        """The segments of some seeds of one split as one batch."""
        part, samples = self._parts[split_of(seeds[0])], self.config.samples + LOOKAHEAD
        waves, domains, labels = zip(*(part.segment(seed, samples) for seed in seeds), strict=True)
        return {
            "waves": torch.from_numpy(np.stack(waves)),
            "domains": torch.tensor(domains),
            "labels": torch.tensor(labels),
        }


def divided(config: SoundFolderConfig) -> tuple[list[Path], list[Path]]:
    """Recordings to train on and recordings held out."""
    training = recordings_below(config.train)
    if config.validation:
        return training, recordings_below(config.validation)
    if len(training) < 2:
        raise ValueError(
            f"{config.train}: one recording is not enough to hold one out; name a --data.config.validation"
        )
    return [path for number, path in enumerate(training) if number % HELD_OUT_EVERY], training[::HELD_OUT_EVERY]


def recordings_below(folder: str) -> list[Path]:
    """Sound and video files of a folder and of the folders in it, by name.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: none was named, or it holds no recording.
    """
    if not folder:
        raise ValueError("name a folder of recordings: --data.config.train FOLDER")
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of recordings")
    found = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise ValueError(f"{folder}: holds no recording; known endings: {', '.join(sorted(SUFFIXES))}")
    return found


def read_recordings(paths: Sequence[Path], folder: str, on_error: OnError) -> Recordings:
    """Decode files of a folder to one channel at 16 kHz.

    Raises:
        ValueError: a file that cannot be read (`on_error="raise"`), or none that can.
    """
    waves: list[np.ndarray] = []
    domains: list[int] = []
    for path in progress("decoding recordings", len(paths))(paths):
        try:
            wave = read_wave(path, longest_s=float("inf"))
        except ValueError as error:
            if on_error == "raise":
                raise ValueError(f"{error}; --data.config.on_error count leaves such files out") from error
            logger.warning("left out: %s", error)
            continue
        waves.append((wave.clamp(-1, 1) * 32767).round().short().numpy())
        domains.append(domain_of(path.relative_to(folder)))
    if not waves:
        raise ValueError(f"{folder}: none of {len(paths)} recordings can be read")
    if len(waves) < len(paths):
        logger.warning("%s: %d of %d recordings left out", folder, len(paths) - len(waves), len(paths))
    return Recordings(waves, domains)


def domain_of(path: Path) -> int:
    """Place in `DOMAINS` of the nearest folder on a path that is called like one; general otherwise."""
    named = [part for part in reversed(path.parent.parts) if part in DOMAINS]
    return DOMAINS.index(named[0]) if named else DOMAINS.index("general")
