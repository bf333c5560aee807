"""Heads on the fused tokens: matching, word prediction, code prediction, answers; and the contrastive projection.

Source: VIOLETv2 (arXiv:2209.01540); the contrastive projection follows ALPRO (arXiv:2112.09583).
Dims: B batch, T frames, h w cells, r codes per side of a cell, K codes, X text tokens, V words, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mm.encoders.evilm.bert import EPS

TEMPERATURE = 0.07
TEMPERATURE_RANGE = (0.001, 0.5)
"""Start and limits of the contrastive temperature (ALPRO)."""


class MlpHead(nn.Sequential):
    """Dropout, Linear D -> 2 D, ReLU, Linear 2 D -> out; matching has one output, a classifier one per answer."""

    def __init__(self, width: int, out: int, dropout: float) -> None:
        super().__init__(nn.Dropout(dropout), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, out))


class WordHead(nn.Module):
    """BERT's word prediction: Linear, GELU, norm, product with a table of words."""

    def __init__(self, width: int, vocab_size: int, tied: bool) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.words = None if tied else nn.Parameter(0.02 * torch.randn(vocab_size, width))
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, x: Tensor, embeddings: Tensor) -> Tensor:
        """x (..., D), embeddings (V, D): used when the head is tied -> (..., V)."""
        table = embeddings if self.words is None else self.words
        return F.linear(self.norm(F.gelu(self.dense(x))), table, self.bias)


class CodeHead(nn.Module):
    """Codes of the r x r places of each cell: 1 x 1 convolution, pixel shuffle, two linear layers."""

    def __init__(self, width: int, codebook_size: int, codes_per_cell: int, dropout: float) -> None:
        super().__init__()
        self.expand = nn.Conv2d(width, 2 * width, 1)
        self.shuffle = nn.PixelShuffle(codes_per_cell)
        self.classify = MlpHead(2 * width // codes_per_cell**2, codebook_size, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, h, w, D) -> logits (B, T, r h, r w, K), row-major as the codes of the tokenizer."""
        maps = self.shuffle(self.expand(rearrange(x, "b t h w d -> (b t) d h w")))
        return self.classify(rearrange(maps, "(b t) c h w -> b t h w c", b=len(x)))


class ContrastiveHead(nn.Module):
    """Unit vectors of video and text in one space, and a learned temperature."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.video, self.text = nn.Linear(width, out), nn.Linear(width, out)
        self.temperature = nn.Parameter(torch.tensor(TEMPERATURE))

    def embed_video(self, pooled: Tensor) -> Tensor:
        """(B, D) -> unit rows (B, out)."""
        return F.normalize(self.video(pooled), dim=-1)

    def embed_text(self, pooled: Tensor) -> Tensor:
        """(B, D) -> unit rows (B, out)."""
        return F.normalize(self.text(pooled), dim=-1)

    def forward(self, video: Tensor, text: Tensor) -> Tensor:
        """Unit rows (B, out), (M, out) -> cosines over the clamped temperature, (B, M)."""
        return video @ text.mT / self.temperature.clamp(*TEMPERATURE_RANGE)
