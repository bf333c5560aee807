"""Audio files in and out, block by block: soundfile, PyAV for the rest (video too), plain WAV without either.

Dims: C channels, S samples.
"""

from __future__ import annotations

import wave
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from mm.checkpoint import write_aside
from mm.codecs.semanticodec.config import SAMPLE_RATE
from mm.extras import require

_SOUND = ("wav", "flac", "ogg", "oga", "opus", "mp3", "aif", "aiff", "au", "caf", "m4a", "aac", "wma")
_VIDEO = ("mp4", "mkv", "mov", "avi", "webm", "m4v")
SUFFIXES = frozenset(f".{ending}" for ending in (*_SOUND, *_VIDEO))
"""Files of a folder that are taken for audio; a file that is named directly is tried whatever its name."""
BLOCK_S = 10.0
"""Seconds per block."""


@dataclass
class AudioSource:
    """An open recording."""

    sample_rate: int
    """Hz."""
    channels: int
    """How many."""
    blocks: Iterator[Tensor]
    """The samples in order, (C, S) float32, full scale is [-1, 1]."""


@contextmanager
def open_audio(file: str | Path | BinaryIO, *, name: str | None = None) -> Iterator[AudioSource]:
    """Open a sound or video file.

    Args:
        file: Path, or an open binary file.
        name: For messages; default is the path.

    Raises:
        FileNotFoundError: no such file.
        ImportError: the format needs a library that is not installed.
        ValueError: no sound in the file, or no format that can be read.
    """
    name = name or str(file)
    if isinstance(file, str | Path) and not Path(file).is_file():
        raise FileNotFoundError(f"{name}: no such file")
    for opener in (_open_soundfile, _open_wave, _open_av):
        with opener(file, name) as source:
            if source is not None:
                yield source
                return
        if not isinstance(file, str | Path):
            file.seek(0)
    raise ValueError(f"{name}: no format that soundfile, PyAV or the WAV reader knows")


@contextmanager
def _open_soundfile(file: Any, name: str) -> Iterator[AudioSource | None]:
    try:
        soundfile = require("soundfile", extra="audio", purpose="Reading this format")
    except (ImportError, OSError):  # not installed, or without its C library: plain WAV and PyAV do without it
        yield None
        return
    try:
        sound = soundfile.SoundFile(file)
    except (soundfile.LibsndfileError, TypeError):
        yield None
        return
    with sound:
        step = int(BLOCK_S * sound.samplerate)
        yield AudioSource(sound.samplerate, sound.channels, _soundfile_blocks(sound, step))


def _soundfile_blocks(sound: Any, step: int) -> Iterator[Tensor]:
    while len(block := sound.read(step, dtype="float32", always_2d=True)):
        yield torch.from_numpy(block).T


@contextmanager
def _open_wave(file: Any, name: str) -> Iterator[AudioSource | None]:
    """PCM WAV by the standard library."""
    try:
        reader = wave.open(str(file) if isinstance(file, Path) else file, "rb")  # noqa: SIM115 (closed below)
    except (wave.Error, EOFError):
        yield None
        return
    with reader:
        width = reader.getsampwidth()
        step = int(BLOCK_S * reader.getframerate())
        yield AudioSource(reader.getframerate(), reader.getnchannels(), _wave_blocks(reader, width, step))


def _wave_blocks(reader: wave.Wave_read, width: int, step: int) -> Iterator[Tensor]:
    while data := reader.readframes(step):
        if width == 1:
            samples = (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
        elif width == 3:
            parts = np.frombuffer(data, np.uint8).reshape(-1, 3).astype(np.int32)
            samples = ((parts[:, 0] << 8 | parts[:, 1] << 16 | parts[:, 2] << 24) / 2**31).astype(np.float32)
        else:
            samples = np.frombuffer(data, f"<i{width}").astype(np.float32) / 2 ** (8 * width - 1)
        yield torch.from_numpy(samples.reshape(-1, reader.getnchannels())).T


@contextmanager
def _open_av(file: Any, name: str) -> Iterator[AudioSource | None]:
    """Everything that FFmpeg reads; of a video its first sound track."""
    av = require("av", extra="video", purpose=f"{name}: this format")
    try:
        container = av.open(str(file) if isinstance(file, Path) else file)
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f"{name}: not a sound or video file that can be read ({error})") from error
    with container:
        if not container.streams.audio:
            raise ValueError(f"{name}: holds no sound track")
        stream = container.streams.audio[0]
        yield AudioSource(stream.rate, stream.channels, _av_blocks(av, container, stream, name))


def _av_blocks(av: Any, container: Any, stream: Any, name: str) -> Iterator[Tensor]:
    converter = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
    try:
        for frame in container.decode(stream):
            for part in converter.resample(frame):
                yield torch.from_numpy(part.to_ndarray())
        for part in converter.resample(None):
            yield torch.from_numpy(part.to_ndarray())
    except av.FFmpegError as error:
        raise ValueError(f"{name}: the sound track cannot be decoded to its end ({error})") from error


@contextmanager
def audio_writer(path: str | Path) -> Iterator[Any]:
    """Write 16-bit mono WAV at 16 kHz; the block gets a function that takes samples (S,) in [-1, 1].

    The file appears under its name when the block ends without an error. Samples beyond full scale are clipped.
    """
    with write_aside(path) as temporary:
        with wave.open(str(temporary), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(SAMPLE_RATE)
            yield lambda samples: file.writeframes(_pcm16(samples))


def _pcm16(samples: Tensor) -> bytes:
    return (samples.detach().float().cpu().clamp(-1, 1) * 32767).round().short().numpy().tobytes()
