"""The published SemantiCodec from its three files, with an account of every tensor."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mm.checkpoint import load_state
from mm.codecs.semanticodec.codec import SemantiCodec
from mm.codecs.semanticodec.config import SemantiCodecConfig, paper
from mm.codecs.semanticodec.convert import Report, encoder_state, read_checkpoint, read_codebook
from mm.codecs.semanticodec.convert_decoder import TABLE, DecoderReport, load_official_decoder
from mm.codecs.semanticodec.schedule import with_schedule_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class OfficialReport:
    """What became of the tensors of both files."""

    encoder: Report
    """Of `encoder.ckpt`."""
    decoder: DecoderReport
    """Of `decoder.ckpt`."""


def load_official(
    encoder_ckpt: str | Path,
    decoder_ckpt: str | Path,
    codebook_npy: str | Path,
    *,
    token_rate: Literal[25, 50, 100] = 100,
    semantic_vocab: int = 32768,
    average: bool = False,
    config: SemantiCodecConfig | None = None,
) -> tuple[SemantiCodec, OfficialReport]:
    """Read the published files, strictly; `save_pretrained` then writes one folder with the codebook inside.

    Args:
        encoder_ckpt: AudioMAE, acoustic encoder, acoustic codebook.
        decoder_ckpt: Diffusion network, mel autoencoder, vocoder, noise schedule.
        codebook_npy: Semantic codebook; the number in its name is half the vocabulary.
        token_rate: 25, 50 or 100.
        semantic_vocab: Rows of the codebook.
        average: Take the moving average of the diffusion network; released inference takes the plain weights.
        config: Sizes, if they are not the published ones (tests).

    Raises:
        FileNotFoundError: one of the files is missing.
        ValueError: a file of another model: tensors missing, unexpected or of another shape, all listed by name.
    """
    config = config or paper(token_rate, semantic_vocab)
    if config.encoder.token_rate != token_rate or config.quantizer.semantic_vocabs != (semantic_vocab,):
        raise ValueError("config contradicts token_rate or semantic_vocab")
    codebook = read_codebook(codebook_npy, config.encoder.token_width)
    if len(codebook) != semantic_vocab:
        raise ValueError(
            f"{codebook_npy}: {len(codebook)} rows, semantic_vocab={semantic_vocab} was asked for "
            "(codebook_16384_0.npy holds the vocabulary of 32768)"
        )
    encoder, report = encoder_state(read_checkpoint(encoder_ckpt), source=str(encoder_ckpt))
    decoder = read_checkpoint(decoder_ckpt)
    if TABLE not in decoder:
        raise ValueError(f"{decoder_ckpt}: no table {TABLE}; this is not a published decoder")
    diffusion = with_schedule_of(config.decoder.diffusion, decoder[TABLE])
    config = replace(config, decoder=replace(config.decoder, diffusion=diffusion))
    codec = SemantiCodec(config)
    encoder[f"semantic.codebook_{semantic_vocab}"] = codebook
    load_state(codec.encoder, encoder, source=str(encoder_ckpt))
    found = load_official_decoder(codec.decoder, decoder, source=str(decoder_ckpt), average=average)
    logger.info("%s: %s", encoder_ckpt, report.summary())
    return codec.eval(), OfficialReport(encoder=report, decoder=found)
