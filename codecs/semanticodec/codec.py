"""The codec as users meet it: waveforms in, token pairs out, and back.

Dims: B recordings, C channels, S samples, N token pairs, D token width, T frames, F mel bins, Z latent channels.
Source: SemantiCodec, arXiv:2405.00233.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mm.checkpoint import Pretrained
from mm.codecs.semanticodec.bits import bits_of
from mm.codecs.semanticodec.config import SAMPLE_RATE, SemantiCodecConfig
from mm.codecs.semanticodec.decoder import Sampler, Sampling, SemantiCodecDecoder
from mm.codecs.semanticodec.encoder import SemantiCodecEncoder
from mm.codecs.semanticodec.fbank import FilterBank
from mm.codecs.semanticodec.framing import Channel, Segment, cut_segments, segment_frames, to_mono
from mm.codecs.semanticodec.lengths import LengthMode, token_count
from mm.codecs.semanticodec.recordings import recordings_of
from mm.codecs.semanticodec.resample import resample_blocks
from mm.codecs.semanticodec.token_features import ABSENT, TokenFeatures, check_tokens
from mm.codecs.semanticodec.windows import window_ranges

logger = logging.getLogger(__name__)

SEGMENTS_AT_ONCE = 8
"""Segments of all recordings that the encoder sees as one batch."""


class SemantiCodec(Pretrained, nn.Module):
    """Semantic and acoustic tokens of sound, and their decoder.

    AudioMAE, semantic codebooks, mel autoencoder and vocoder are frozen; the acoustic encoder, its codebook and the
    diffusion network train together.

    Args:
        config: All sizes.
        seed: Draws the weights of a fresh model.

    Example:
        >>> from mm.codecs.semanticodec.config import tiny
        >>> codec = SemantiCodec(tiny()).eval()
        >>> tokens = codec.encode(torch.zeros(1, 16_000), 16_000)
        >>> tokens.shape, codec.decode(tokens, steps=2).shape
        (torch.Size([1, 28, 2]), torch.Size([1, 1, 17920]))
    """

    config_class = SemantiCodecConfig
    config: SemantiCodecConfig

    def __init__(self, config: SemantiCodecConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = SemantiCodecEncoder(config.encoder, config.quantizer, seed=seed)
            self.decoder = SemantiCodecDecoder(config.decoder)
        self.bank = FilterBank(config.encoder.audiomae.mel_bins)
        for part in (self.encoder.audiomae, self.decoder.vae, self.decoder.vocoder):
            part.requires_grad_(False)

    # --- what it is --------------------------------------------------------------------------------------------------

    @property
    def sample_rate(self) -> int:
        """16,000 Hz."""
        return SAMPLE_RATE

    @property
    def token_rate(self) -> int:
        """Tokens per second, semantic and acoustic ones together: 25, 50 or 100."""
        return self.config.encoder.token_rate

    @property
    def semantic_vocabs(self) -> tuple[int, ...]:
        """Semantic vocabularies that this model can speak; the last is used unless another is asked for."""
        return self.config.quantizer.semantic_vocabs

    @property
    def acoustic_vocab(self) -> int:
        """Size of the acoustic codebook."""
        return self.config.quantizer.acoustic_vocab

    @property
    def bitrate(self) -> float:
        """Bits per second with the default vocabulary."""
        return self.bitrate_of(self.semantic_vocabs[-1])

    def bitrate_of(self, semantic_vocab: int) -> float:
        """Bits per second with one of the semantic vocabularies."""
        return self.token_rate / 2 * (bits_of(semantic_vocab) + bits_of(self.acoustic_vocab))

    def fingerprint(self, semantic_vocab: int | None = None) -> int:
        """32-bit number of the codebooks: tokens mean something to a decoder with the same one only.

        Taken from the bfloat16 values, so that loading in another precision does not change it.
        """
        tables = (self.encoder.semantic.codebook(semantic_vocab), self.encoder.quantizer.codebook)
        return zlib.crc32(b"".join(t.detach().bfloat16().view(torch.int16).cpu().numpy().tobytes() for t in tables))

    def preprocessing(self) -> dict[str, Any]:
        """Sample rate, channels and rates; travels with the weights."""
        return {
            "sample_rate": SAMPLE_RATE,
            "channels": 1,
            "segment_samples": self.config.encoder.segment_samples,
            "token_rate": self.token_rate,
        }

    @classmethod
    def from_official(
        cls,
        encoder_ckpt: str | Path,
        decoder_ckpt: str | Path,
        codebook_npy: str | Path,
        *,
        token_rate: Literal[25, 50, 100] = 100,
        semantic_vocab: int = 32768,
        average: bool = False,
    ) -> SemantiCodec:
        """The published model from its three files; see `mm.codecs.semanticodec.official.load_official`."""
        from mm.codecs.semanticodec.official import load_official

        found, _ = load_official(
            encoder_ckpt,
            decoder_ckpt,
            codebook_npy,
            token_rate=token_rate,
            semantic_vocab=semantic_vocab,
            average=average,
        )
        return found

    # --- sound to tokens ---------------------------------------------------------------------------------------------

    def encode(
        self,
        wave: Tensor | np.ndarray | Sequence[Tensor | np.ndarray],
        sample_rate: int,
        *,
        lengths: Sequence[int] | Tensor | None = None,
        semantic_vocab: int | None = None,
        length_mode: LengthMode = "exact",
        channel: Channel = "mean",
        segments_at_once: int = SEGMENTS_AT_ONCE,
    ) -> Tensor:
        """Token pairs of recordings.

        Args:
            wave: (S,) or (B, S) mono, (B, C, S) with channels, or a list of (S,) and (C, S) of any lengths; full scale
                is [-1, 1].
            sample_rate: Hz; anything is resampled to 16 kHz.
            lengths: Samples of each row of a padded batch, (B,); none takes all.
            semantic_vocab: One of `semantic_vocabs`; none takes the last.
            length_mode: exact: one column of tokens per started 160 ms (320 ms at 25 tokens per second); official:
                the released rule.
            channel: mean of the channels, or the first one as the released code.
            segments_at_once: Batch of the encoder.

        Returns:
            (B, N, 2) int64: semantic, acoustic; rows that end earlier continue with -1.

        Raises:
            ValueError: no samples, samples that are not finite, impossible rate or shapes, unknown vocabulary.
        """
        self.encoder.semantic.codebook(semantic_vocab)  # an unknown vocabulary is named before any work is done
        found = [
            list(self._segments([recording], sample_rate, length_mode, channel))
            for recording in recordings_of(wave, lengths)
        ]
        counts = [pairs[-1][1] for pairs in found]
        flat = iter([segment for pairs in found for segment, _ in pairs])
        tokens = []
        while chunk := list(islice(flat, segments_at_once)):
            tokens.append(self._tokens(chunk, semantic_vocab))
        rows = torch.cat(tokens).split([len(pairs) for pairs in found])
        rows = [row.flatten(0, 1)[:count] for row, count in zip(rows, counts, strict=True)]
        return pad_sequence(rows, batch_first=True, padding_value=ABSENT)

    def encode_blocks(
        self,
        blocks: Iterable[Tensor],
        sample_rate: int,
        *,
        semantic_vocab: int | None = None,
        length_mode: LengthMode = "exact",
        channel: Channel = "mean",
        segments_at_once: int = SEGMENTS_AT_ONCE,
    ) -> Iterator[Tensor]:
        """`encode` of one recording that comes in blocks (C, S_i); memory does not grow with its length.

        Yields:
            Token pairs in order, (N_i, 2); together what `encode` gives for the whole.
        """
        segments = self._segments(blocks, sample_rate, length_mode, channel)
        done = 0
        while chunk := list(islice(segments, segments_at_once)):
            tokens = self._tokens([segment for segment, _ in chunk], semantic_vocab).flatten(0, 1)
            tokens = tokens[: chunk[-1][1] - done]
            done += len(tokens)
            yield tokens

    def _segments(
        self, blocks: Iterable[Tensor], sample_rate: int, mode: LengthMode, channel: Channel
    ) -> Iterator[tuple[Segment, int]]:
        """Segments of a recording, each with the number of its tokens up to there."""
        config, seen, done = self.config.encoder, [0], 0
        mono = (to_mono(block, channel)[None] for block in blocks)

        def counted() -> Iterator[Tensor]:
            for block in resample_blocks(mono, sample_rate):
                seen[0] += block.shape[-1]
                yield block[0]

        for segment in cut_segments(counted(), config, mode):
            done = min(done + config.segment_tokens, token_count(seen[0], config, mode))
            yield segment, done

    @torch.inference_mode()
    def _tokens(self, segments: list[Segment], semantic_vocab: int | None) -> Tensor:
        frames = segment_frames(segments, self.bank, self.bank.window.device)
        return self.encoder(frames, vocab=semantic_vocab).tokens

    @torch.inference_mode()
    def features(
        self,
        wave: Tensor | np.ndarray | Sequence[Tensor | np.ndarray],
        sample_rate: int,
        *,
        lengths: Sequence[int] | Tensor | None = None,
        channel: Channel = "mean",
    ) -> Tensor:
        """Unquantised AudioMAE features in the place of `encode`'s tokens, (B, N, D); zero behind a row's end."""
        rows = []
        for recording in recordings_of(wave, lengths):
            pairs = list(self._segments([recording], sample_rate, "exact", channel))
            frames = segment_frames([segment for segment, _ in pairs], self.bank, self.bank.window.device)
            rows.append(self.encoder.features(frames).flatten(0, 1)[: pairs[-1][1]])
        return pad_sequence(rows, batch_first=True)

    def embed(self, tokens: Tensor, *, semantic_vocab: int | None = None) -> Tensor:
        """Embeddings [acoustic ; semantic] of pairs (B, N, 2) -> (B, N, 2 D); pairs of -1 give -1 everywhere.

        Raises:
            ValueError: a token outside its vocabulary.
        """
        return TokenFeatures(self.encoder, tokens, semantic_vocab)[:, 0 : tokens.shape[1]]

    # --- tokens to sound ---------------------------------------------------------------------------------------------

    def decode(
        self,
        tokens: Tensor,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        sampler: Sampler = "ddim",
        eta: float | None = None,
        semantic_vocab: int | None = None,
        windows_at_once: int = 16,
        official_joins: bool = False,
    ) -> Tensor:
        """Sound of token pairs.

        Args:
            tokens: (B, N, 2) int64; rows may end in pairs of -1, as `encode` pads them.
            steps: Sampling steps; none takes the model's default (25).
            guidance: Classifier-free guidance, 1 is off; none takes the default (2).
            seed: Of the noise: same seed, same sound. A row sounds the same alone and in a batch.
            sampler: ddim, or dpm++ for 10 to 20 steps.
            eta: Noise of DDIM, 0 to 1; none takes the default (1).
            semantic_vocab: Vocabulary that the tokens were made with; none takes the last.
            windows_at_once: Windows of all rows that run as one batch.
            official_joins: Join untrimmed windows as the released code does (2 ms of drift per window).

        Returns:
            (B, 1, S) float32 in [-1, 1] at 16 kHz; zero behind a row's end.

        Raises:
            ValueError: tokens of another shape or outside their vocabularies, or a row without tokens.
        """
        check_tokens(tokens, self.encoder, semantic_vocab)
        config = self.config.decoder
        lengths = (tokens[..., 0] != ABSENT).sum(1).tolist()
        groups: dict[int, list[int]] = {}
        for row, length in enumerate(lengths):  # rows with equally many windows share all joins
            groups.setdefault(len(window_ranges(length, config.window_tokens, config.overlap_tokens)), []).append(row)
        found = torch.zeros(len(tokens), 1, max(lengths) * self.decoder.samples_per_token)
        sampling = Sampling(steps=steps, guidance=guidance, seed=seed, sampler=sampler, eta=eta)
        for rows in groups.values():
            longest = max(lengths[row] for row in rows)
            features: Any = TokenFeatures(self.encoder, tokens[rows, :longest], semantic_vocab)
            pieces = self.decoder.stream(
                features, sampling, windows_at_once=windows_at_once, official_joins=official_joins
            )
            wave = torch.cat([piece.float().cpu() for piece in pieces], dim=-1)
            for row, sound in zip(rows, wave, strict=True):
                end = lengths[row] * self.decoder.samples_per_token
                found[row, :, :end] = sound[:, :end]
        return found.to(tokens.device)

    def decode_blocks(
        self,
        tokens: Tensor,
        *,
        sampling: Sampling | None = None,
        semantic_vocab: int | None = None,
        windows_at_once: int = 16,
    ) -> Iterator[Tensor]:
        """`decode` of one recording (N, 2) in blocks (S_i,); memory does not grow with its length."""
        check_tokens(tokens[None], self.encoder, semantic_vocab)
        features: Any = TokenFeatures(self.encoder, tokens[None], semantic_vocab)
        for piece in self.decoder.stream(features, sampling, windows_at_once=windows_at_once):
            yield piece[0, 0].float().cpu()

    # --- training ----------------------------------------------------------------------------------------------------

    def forward(self, frames: Tensor, noisy: Tensor, timesteps: Tensor, *, semantic_vocab: int | None = None) -> Tensor:
        """The diffusion network's prediction v for segments and their noisy latents; what training minimises.

        Args:
            frames: Normalised filter bank of whole segments, (B, T, F).
            noisy: Latents with noise, (B, Z, T / 4, 16).
            timesteps: Noise level of each row, (B,) int64.
            semantic_vocab: Vocabulary of the condition; none takes the last.

        Returns:
            v, the shape of `noisy`.
        """
        condition = self.decoder.condition(self.encoder(frames, vocab=semantic_vocab).condition)
        context = self.decoder.unet.read_context(condition)
        return self.decoder.unet(noisy.to(condition.dtype), timesteps, context)  # type: ignore[no-any-return]
