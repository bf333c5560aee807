"""Sound files to token files and back, in memory that does not grow with their length."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from mm.codecs.semanticodec.audio import audio_writer, open_audio
from mm.codecs.semanticodec.codec import SEGMENTS_AT_ONCE, SemantiCodec
from mm.codecs.semanticodec.config import SAMPLE_RATE
from mm.codecs.semanticodec.container import TokenFile
from mm.codecs.semanticodec.decoder import Sampling
from mm.codecs.semanticodec.framing import Channel, to_mono
from mm.codecs.semanticodec.lengths import LengthMode, samples_of

logger = logging.getLogger(__name__)

TARGET_PEAK = 0.5
"""Peak after normalisation, the level of the published training data."""
CLIPPED = 0.999
"""Samples at or above this count as clipped."""


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """How files are encoded."""

    semantic_vocab: int | None = None
    """Vocabulary; none takes the model's last."""
    length_mode: LengthMode = "exact"
    """Rule for the number of tokens."""
    channel: Channel = "mean"
    """Which channel of several."""
    normalize: bool = False
    """Bring the peak to 0.5 and keep the gain in the file; reads it twice."""
    segments_at_once: int = SEGMENTS_AT_ONCE
    """Batch of the encoder."""


def encode_file(
    codec: SemantiCodec, file: str | Path | BinaryIO, options: EncodeOptions | None = None, *, name: str | None = None
) -> TokenFile:
    """Tokens of a sound or video file of any length.

    Args:
        codec: The model.
        file: Path, or an open binary file.
        options: How.
        name: For messages; default is the path.

    Raises:
        FileNotFoundError: no such file.
        ImportError: the format needs a library that is not installed.
        ValueError: what `open_audio` and `SemantiCodec.encode` refuse; the message names the file.
    """
    options, name = options or EncodeOptions(), name or str(file)
    try:
        gain = _gain(file, options, name) if options.normalize else 1.0
        return _encode(codec, file, options, gain, name)
    except ValueError as error:
        raise ValueError(f"{error}" if name in str(error) else f"{name}: {error}") from error


def _gain(file: str | Path | BinaryIO, options: EncodeOptions, name: str) -> float:
    """What the samples are divided by, so that their peak is 0.5; 1 for silence."""
    peak = 0.0
    with open_audio(file, name=name) as source:
        for block in source.blocks:
            peak = max(peak, float(to_mono(block, options.channel).abs().max()))
    if not isinstance(file, str | Path):
        file.seek(0)
    return peak / TARGET_PEAK if peak else 1.0


def _encode(
    codec: SemantiCodec, file: str | Path | BinaryIO, options: EncodeOptions, gain: float, name: str
) -> TokenFile:
    counts = {"samples": 0, "clipped": 0}
    with open_audio(file, name=name) as source:

        def blocks():  # type: ignore[no-untyped-def]
            for block in source.blocks:
                counts["samples"] += block.shape[-1]
                counts["clipped"] += int((block.abs() >= CLIPPED).any(0).sum())
                yield block / gain

        tokens = torch.cat(
            list(
                codec.encode_blocks(
                    blocks(),
                    source.sample_rate,
                    semantic_vocab=options.semantic_vocab,
                    length_mode=options.length_mode,
                    channel=options.channel,
                    segments_at_once=options.segments_at_once,
                )
            )
        )
        rate = source.sample_rate
    if counts["clipped"] > 0.001 * counts["samples"]:
        logger.warning("%s: %.1f %% of the samples are clipped", name, 100 * counts["clipped"] / counts["samples"])
    return TokenFile(
        tokens=tokens.cpu().numpy(),
        token_rate=codec.token_rate,
        semantic_vocab=options.semantic_vocab or codec.semantic_vocabs[-1],
        acoustic_vocab=codec.acoustic_vocab,
        samples=-(-counts["samples"] * SAMPLE_RATE // rate),
        source_rate=rate,
        gain=gain,
        model=codec.fingerprint(options.semantic_vocab),
    )


def decode_file(
    codec: SemantiCodec,
    tokens: TokenFile,
    out: str | Path,
    sampling: Sampling | None = None,
    *,
    windows_at_once: int = 16,
    force: bool = False,
) -> int:
    """Write the sound of a token file as 16-bit WAV, exactly as long as the recording was.

    Args:
        codec: The model that made the tokens.
        tokens: What `read_tokens` gave.
        out: File to write; it appears when it is complete.
        sampling: Steps, guidance, seed, sampler.
        windows_at_once: Batch of the decoder.
        force: Decode tokens of another model with the same sizes, which gives noise unless the codebooks are alike.

    Returns:
        Samples written.

    Raises:
        ValueError: another token rate or vocabulary, or the tokens of another model.
    """
    check_fits(codec, tokens, force=force)
    left = min(tokens.samples, samples_of(len(tokens.tokens), codec.config.encoder))
    written = 0
    with audio_writer(out) as write:
        blocks = codec.decode_blocks(
            torch.from_numpy(tokens.tokens),
            sampling=sampling,
            semantic_vocab=tokens.semantic_vocab,
            windows_at_once=windows_at_once,
        )
        for block in blocks:
            block = block[: left - written] * tokens.gain
            written += len(block)
            write(block)
    return written


def check_fits(codec: SemantiCodec, tokens: TokenFile, *, force: bool = False) -> None:
    """Refuse tokens that this model cannot know.

    Raises:
        ValueError: another token rate or vocabulary, or the tokens of another model.
    """
    if tokens.token_rate != codec.token_rate:
        raise ValueError(
            f"the tokens run at {tokens.token_rate} per second, this model at {codec.token_rate}; "
            "decode with the model that made them"
        )
    if tokens.semantic_vocab not in codec.semantic_vocabs or tokens.acoustic_vocab != codec.acoustic_vocab:
        raise ValueError(
            f"the tokens have vocabularies of {tokens.semantic_vocab} and {tokens.acoustic_vocab}, this model of "
            f"{' or '.join(map(str, codec.semantic_vocabs))} and {codec.acoustic_vocab}"
        )
    if tokens.model and not force and tokens.model != codec.fingerprint(tokens.semantic_vocab):
        raise ValueError(
            "the tokens were made with other codebooks than this model's; decode with the model that made them "
            "(--force, in Python force=True, decodes them all the same)"
        )
