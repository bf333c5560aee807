"""The `.stk` file: bit-packed tokens with what a decoder must know, checksums, and recovery of damaged files.

    header   48 bytes, little endian, the last 4 are the CRC-32 of the others
    blocks   512 pairs each (the last may be shorter): packed bits, then their 16-bit CRC

Damage is found per block, so everything in front of it can be saved. Header and checksums add 0.1 % to the tokens' own
bit rate in long files.
"""

from __future__ import annotations

import binascii
import logging
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mm.checkpoint import write_aside
from mm.codecs.semanticodec.bits import pack_pairs, packed_size, unpack_pairs
from mm.codecs.semanticodec.config import SAMPLE_RATE, STACK_OF_RATE

logger = logging.getLogger(__name__)

MAGIC = b"MSTK"
VERSION = 1
BLOCK_PAIRS = 512
_FIELDS = struct.Struct("<4sHHIIQQIfI")  # magic, version, rate, vocabularies, pairs, samples, source rate, gain, model
HEADER_SIZE = _FIELDS.size + 4


@dataclass(frozen=True, kw_only=True)
class TokenFile:
    """Tokens of one recording and what belongs to them."""

    tokens: NDArray[np.int64]
    """Semantic and acoustic ids, (N, 2)."""
    token_rate: int
    """Tokens per second, both kinds together: 25, 50 or 100."""
    semantic_vocab: int
    """Size of the semantic codebook."""
    acoustic_vocab: int
    """Size of the acoustic codebook."""
    samples: int
    """Length of the recording at 16 kHz; decoding is cut to it."""
    source_rate: int = SAMPLE_RATE
    """Sample rate of the recording in Hz, for information."""
    gain: float = 1.0
    """The recording was divided by this before encoding; decoding multiplies by it."""
    model: int = 0
    """Fingerprint of the codebooks; 0 is unknown."""

    def __post_init__(self) -> None:
        if self.token_rate not in STACK_OF_RATE:
            raise ValueError(f"token_rate must be 25, 50 or 100, got {self.token_rate}")
        if self.tokens.ndim != 2 or self.tokens.shape[1] != 2:
            raise ValueError(f"tokens must be (pairs, 2), got {self.tokens.shape}")
        if not (np.isfinite(self.gain) and self.gain > 0):
            raise ValueError(f"gain must be a positive number, got {self.gain}")

    @property
    def vocabs(self) -> tuple[int, int]:
        """Semantic and acoustic vocabulary."""
        return self.semantic_vocab, self.acoustic_vocab

    @property
    def duration_s(self) -> float:
        """Length of the recording in seconds."""
        return self.samples / SAMPLE_RATE


def pack(file: TokenFile) -> bytes:
    """A container as bytes.

    Raises:
        ValueError: an id outside its vocabulary.
    """
    parts = [_header(file)]
    for start in range(0, len(file.tokens), BLOCK_PAIRS):
        block = pack_pairs(file.tokens[start : start + BLOCK_PAIRS], file.vocabs)
        parts += [block, struct.pack("<H", binascii.crc_hqx(block, 0))]
    return b"".join(parts)


def unpack(data: bytes, *, recover: bool = False, source: str = "container") -> TokenFile:
    """The container in `data`.

    Args:
        data: The whole file.
        recover: Keep what stands in front of the first damage instead of stopping; a log line says how much is lost.
        source: Named in messages.

    Raises:
        ValueError: not a container, a damaged header, or (without `recover`) damaged, missing or surplus data.
    """
    file, pairs = _read_header(data, source)
    tokens, damage = _read_blocks(data[HEADER_SIZE:], pairs, file.vocabs)
    if damage and not recover:
        raise ValueError(
            f"{source}: {damage}; the {len(tokens)} of {pairs} token pairs in front of it are whole: "
            "mm codec decode --recover (in Python recover=True) uses them"
        )
    if damage:
        logger.warning("%s: %s; %d of %d token pairs recovered", source, damage, len(tokens), pairs)
        kept = round(file.samples * len(tokens) / pairs)
        return replace(file, tokens=tokens, samples=kept)
    return replace(file, tokens=tokens)


def write_tokens(path: str | Path, file: TokenFile) -> Path:
    """Write a container, whole or not at all."""
    with write_aside(path) as temporary:
        temporary.write_bytes(pack(file))
    return Path(path)


def read_tokens(path: str | Path, *, recover: bool = False) -> TokenFile:
    """Read a container; see `unpack`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a container, or a damaged one.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return unpack(path.read_bytes(), recover=recover, source=str(path))


def _header(file: TokenFile) -> bytes:
    found = _FIELDS.pack(
        MAGIC,
        VERSION,
        file.token_rate,
        file.semantic_vocab,
        file.acoustic_vocab,
        len(file.tokens),
        file.samples,
        file.source_rate,
        file.gain,
        file.model,
    )
    return found + struct.pack("<I", zlib.crc32(found))


def _read_header(data: bytes, source: str) -> tuple[TokenFile, int]:
    """Everything but the tokens, and how many pairs there should be."""
    if data[:4] != MAGIC:
        raise ValueError(f"{source}: not a token container (it begins with {data[:4]!r}, a container with {MAGIC!r})")
    if len(data) < HEADER_SIZE:
        raise ValueError(f"{source}: ends after {len(data)} bytes, inside its header; nothing can be recovered")
    stored = struct.unpack_from("<I", data, _FIELDS.size)[0]
    if zlib.crc32(data[: _FIELDS.size]) != stored:
        raise ValueError(f"{source}: the checksum of the header is wrong; sizes and vocabularies cannot be trusted")
    _, version, rate, semantic, acoustic, pairs, samples, source_rate, gain, model = _FIELDS.unpack_from(data)
    if version != VERSION:
        raise ValueError(f"{source}: container version {version}, this program reads version {VERSION}")
    file = TokenFile(
        tokens=np.zeros((0, 2), np.int64),
        token_rate=rate,
        semantic_vocab=semantic,
        acoustic_vocab=acoustic,
        samples=samples,
        source_rate=source_rate,
        gain=gain,
        model=model,
    )
    return file, pairs


def _read_blocks(data: bytes, pairs: int, vocabs: tuple[int, int]) -> tuple[NDArray[np.int64], str]:
    """Tokens in front of the first damage, and the damage in words ("" if there is none)."""
    found = [np.zeros((0, 2), np.int64)]
    place = 0
    for start in range(0, pairs, BLOCK_PAIRS):
        count = min(BLOCK_PAIRS, pairs - start)
        size = packed_size(count, vocabs)
        block, check = data[place : place + size], data[place + size : place + size + 2]
        place += size + 2
        if len(check) < 2:
            whole = (
                len(block) * 8 // (packed_size(8, vocabs))
            )  # the pairs that are there, though nothing vouches for them
            found.append(unpack_pairs(block, min(whole, count), vocabs))
            return _usable(found, vocabs), f"the file is cut off after {len(data) + HEADER_SIZE} bytes"
        if struct.unpack("<H", check)[0] != binascii.crc_hqx(block, 0):
            return _usable(found, vocabs), f"wrong checksum in the block of pairs {start}..{start + count - 1}"
        found.append(unpack_pairs(block, count, vocabs))
    surplus = len(data) - place
    return _usable(found, vocabs), f"{surplus} surplus bytes behind the last block" if surplus else ""


def _usable(blocks: list[NDArray[np.int64]], vocabs: tuple[int, int]) -> NDArray[np.int64]:
    """All pairs up to the first id that no vocabulary holds (sizes need not be powers of two)."""
    tokens = np.concatenate(blocks)
    bad = (tokens >= np.array(vocabs)).any(axis=1)
    return tokens[: int(bad.argmax())] if bad.any() else tokens
