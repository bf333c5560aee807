"""Semantic codebooks: frozen k-means centres of AudioMAE features, one part per sound domain.

Dims: B segments, N tokens, D token width, V semantic vocabulary.
Source: paper section III-A; nearest by squared Euclidean distance, nothing normalised.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm.codecs.semanticodec.config import QuantizerConfig
from mm.kernels import nearest_code


class SemanticCodebooks(nn.Module):
    """The codebooks of all vocabularies that a model was trained with; the last one is the default.

    They are saved with the model and follow it to any device.

    Args:
        config: Vocabularies and domains.
        width: Channels per code (D).
        seed: Draws the placeholders that k-means or a file replaces.
    """

    def __init__(self, config: QuantizerConfig, width: int, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.width = width
        generator = torch.Generator().manual_seed(seed)
        for vocab in config.semantic_vocabs:
            self.register_buffer(f"codebook_{vocab}", torch.randn(vocab, width, generator=generator))

    def codebook(self, vocab: int | None = None) -> Tensor:
        """Centres of one vocabulary, (V, D).

        Raises:
            ValueError: this model holds no such vocabulary.
        """
        vocab = vocab or self.config.semantic_vocabs[-1]
        if vocab not in self.config.semantic_vocabs:
            raise ValueError(f"no semantic vocabulary of {vocab}; this model holds {self.config.semantic_vocabs}")
        return self.get_buffer(f"codebook_{vocab}")

    @torch.no_grad()
    def fill(self, codebook: Tensor) -> None:
        """Replace the centres of the vocabulary that `codebook` (V, D) has rows for.

        Raises:
            ValueError: another size or width, or numbers that are not finite.
        """
        own = self.codebook(len(codebook))
        if codebook.shape != own.shape or not codebook.isfinite().all():
            raise ValueError(
                f"a semantic codebook must hold finite numbers of shape {tuple(own.shape)}, got {tuple(codebook.shape)}"
            )
        own.copy_(codebook)

    def encode(self, features: Tensor, vocab: int | None = None) -> Tensor:
        """Nearest centres of features (B, N, D) -> (B, N) int64."""
        return nearest_code(features.float(), self.codebook(vocab).float())[0]

    def lookup(self, codes: Tensor, vocab: int | None = None) -> Tensor:
        """Centres of codes (B, N) -> (B, N, D).

        Raises:
            ValueError: a code outside the vocabulary.
        """
        table = self.codebook(vocab)
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= len(table)):
            raise ValueError(
                f"semantic codes must lie in 0..{len(table) - 1}, got {int(codes.min())}..{int(codes.max())}; "
                "were they made with another vocabulary?"
            )
        return F.embedding(codes, table)
