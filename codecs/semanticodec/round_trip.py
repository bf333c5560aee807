"""A short recording there and back through its packed file, in memory.

Dims: S samples, N token pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mm.codecs.semanticodec.audio import open_audio
from mm.codecs.semanticodec.codec import SemantiCodec
from mm.codecs.semanticodec.config import SAMPLE_RATE
from mm.codecs.semanticodec.container import TokenFile, pack, unpack
from mm.codecs.semanticodec.decoder import Sampling
from mm.codecs.semanticodec.files import check_fits
from mm.codecs.semanticodec.framing import to_mono
from mm.codecs.semanticodec.resample import resample_blocks


@dataclass(frozen=True, kw_only=True)
class RoundTrip:
    """A recording, its tokens, their file and what the file decodes to."""

    source: Tensor
    """The recording at 16 kHz, (S,)."""
    decoded: Tensor
    """What its tokens sound like, (S,)."""
    tokens: Tensor
    """Semantic and acoustic ids, (N, 2)."""
    file: bytes
    """The packed file, header and checksums included."""

    @property
    def seconds(self) -> float:
        """Length of the recording."""
        return len(self.source) / SAMPLE_RATE


def read_wave(path: str | Path, *, name: str | None = None, longest_s: float = 60.0) -> Tensor:
    """A sound or video file as one channel at 16 kHz, (S,).

    Args:
        path: Any format that `mm codec` takes.
        name: For messages; default is the path.
        longest_s: What is longer is refused: everything here is in memory at once.

    Raises:
        FileNotFoundError: no such file.
        ImportError: the format needs a library that is not installed.
        ValueError: no sound, samples that are not finite, or too long; the message names the file.
    """
    name = name or str(path)
    try:
        with open_audio(path, name=name) as source:
            blocks, left = [], longest_s * source.sample_rate
            for block in source.blocks:
                left -= block.shape[-1]
                if left < 0:
                    raise ValueError(f"longer than {longest_s:g} s; `mm codec encode` takes sound of any length")
                blocks.append(to_mono(block)[None])
            found = [block[0] for block in resample_blocks(iter(blocks), source.sample_rate)]
    except ValueError as error:
        raise ValueError(f"{error}" if name in str(error) else f"{name}: {error}") from error
    wave = torch.cat(found) if found else torch.zeros(0)
    if not len(wave):
        raise ValueError(f"{name}: there are no samples")
    return wave


def packed(codec: SemantiCodec, wave: Tensor) -> tuple[Tensor, bytes]:
    """Token pairs (N, 2) of a recording (S,) at 16 kHz, and their file."""
    tokens = codec.encode(wave[None], SAMPLE_RATE)[0]
    file = TokenFile(
        tokens=tokens.cpu().numpy(),
        token_rate=codec.token_rate,
        semantic_vocab=codec.semantic_vocabs[-1],
        acoustic_vocab=codec.acoustic_vocab,
        samples=len(wave),
        model=codec.fingerprint(),
    )
    return tokens, pack(file)


def unpacked(codec: SemantiCodec, file: bytes, sampling: Sampling | None = None) -> Tensor:
    """The recording (S,) at 16 kHz that a file holds.

    Raises:
        ValueError: a damaged file, or one of another model.
    """
    stored = unpack(file)
    check_fits(codec, stored)
    pieces = codec.decode_blocks(
        torch.from_numpy(stored.tokens), sampling=sampling, semantic_vocab=stored.semantic_vocab
    )
    return torch.cat(list(pieces))[: stored.samples] * stored.gain


def round_trip(codec: SemantiCodec, wave: Tensor, sampling: Sampling | None = None) -> RoundTrip:
    """Encode, pack, unpack and decode a recording (S,) at 16 kHz."""
    tokens, file = packed(codec, wave)
    return RoundTrip(source=wave, decoded=unpacked(codec, file, sampling), tokens=tokens, file=file)
