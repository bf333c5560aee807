"""Mel segments -> pairs of a semantic and an acoustic token, and the embeddings of such pairs.

Dims: B segments, T frames, F mel bins, N token pairs per segment, D token width.
Source: paper sections III-A and III-B, figure 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm.codecs.quantize import VectorQuantizer, VectorQuantizerConfig
from mm.codecs.semanticodec.acoustic import PADDED, AcousticEncoder
from mm.codecs.semanticodec.audiomae import AudioMae
from mm.codecs.semanticodec.config import EncoderConfig, QuantizerConfig
from mm.codecs.semanticodec.fbank import frames_kept
from mm.codecs.semanticodec.semantic import SemanticCodebooks
from mm.codecs.semanticodec.stacking import stack_patches


class Encoded(NamedTuple):
    """What the encoder finds in a batch of segments."""

    tokens: Tensor
    """(B, N, 2) int64: semantic, acoustic."""
    condition: Tensor
    """Decoder input [acoustic ; semantic], (B, N, 2D), padded positions at -1."""
    unquantized: Tensor
    """The same from the vectors in front of both codebooks: a control."""
    keep: Tensor
    """True where a token position holds sound, (B, N) bool."""
    loss: Tensor
    """Commitment loss of the acoustic codebook, scalar."""


class SemantiCodecEncoder(nn.Module):
    """AudioMAE, semantic codebooks, acoustic encoder and acoustic codebook.

    Args:
        config: Sizes of the feature path.
        quantizer: Codebooks.
        seed: Draws the codebooks of a fresh model.
    """

    def __init__(self, config: EncoderConfig, quantizer: QuantizerConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.audiomae = AudioMae(config.audiomae)
        self.semantic = SemanticCodebooks(quantizer, config.token_width, seed=seed)
        self.acoustic = AcousticEncoder(config)
        self.quantizer = VectorQuantizer(
            VectorQuantizerConfig(
                size=quantizer.acoustic_vocab,
                width=config.token_width,
                decay=quantizer.decay,
                epsilon=quantizer.epsilon,
                commitment=quantizer.commitment,
                revive_below=quantizer.revive_below,
                seed=seed,
            )
        )

    def features(self, frames: Tensor) -> Tensor:
        """Unquantised tokens of segments (B, T, F) -> (B, N, D), without gradient: AudioMAE stays frozen."""
        with torch.no_grad():
            patches = self.audiomae(frames)[:, 1:]
        return stack_patches(patches, self.config.stack, self.config.audiomae.grid)

    def keep(self, frames: Tensor) -> Tensor:
        """True at token positions up to the last sounding frame, (B, N) bool."""
        count, total = self.config.segment_tokens, self.config.audiomae.segment_frames
        kept = (frames_kept(frames) * count + total - 1) // total  # rounded up
        return torch.arange(count, device=frames.device) < kept[:, None]

    def forward(self, frames: Tensor, *, vocab: int | None = None) -> Encoded:
        """Tokens and decoder condition of whole segments.

        Args:
            frames: Normalised filter bank, (B, T, F).
            vocab: Semantic vocabulary; none takes the largest that the model holds.
        """
        features, keep = self.features(frames), self.keep(frames)
        return self.quantize(features, keep, vocab=vocab)

    def quantize(self, features: Tensor, keep: Tensor, *, vocab: int | None = None) -> Encoded:
        """`forward` from stacked features (B, N, D) and kept positions (B, N)."""
        codes = self.semantic.encode(features, vocab)
        semantic = F.embedding(codes, self.semantic.codebook(vocab)).to(features.dtype)  # `lookup` would read back
        # Deviation: padding is left out of the codebook's statistics; the released training counts it.
        vectors = self.acoustic(features, semantic, keep)
        acoustic = self.quantizer(vectors, keep)
        return Encoded(
            torch.stack([codes, acoustic.codes], dim=-1),
            torch.where(keep[..., None], torch.cat([acoustic.quantized, semantic], dim=-1), PADDED),
            torch.where(keep[..., None], torch.cat([vectors, features], dim=-1), PADDED),
            keep,
            acoustic.loss,
        )

    def embed(self, tokens: Tensor, *, vocab: int | None = None) -> Tensor:
        """Embeddings [acoustic ; semantic] of pairs (B, N, 2) -> (B, N, 2D), nothing masked.

        Raises:
            ValueError: a token outside its vocabulary.
        """
        semantic = self.semantic.lookup(tokens[..., 0], vocab)
        return torch.cat([self.quantizer.lookup(tokens[..., 1]).to(semantic.dtype), semantic], dim=-1)
