"""Text embeddings and post-norm transformer layers in the shape of BERT (Devlin et al. 2018, arXiv:1810.04805).

Text layers and fusion are the same stack. Fusion sees video tokens first, then text.
Dims: B batch, N tokens, X text tokens, D width, h heads, e channels per head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

EPS = 1e-12
"""Of every norm, as in BERT."""


class TextEmbeddings(nn.Module):
    """Word, position and type embeddings, summed and normalised."""

    def __init__(self, vocab_size: int, max_len: int, width: int, dropout: float) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(max_len, width)
        self.types = nn.Embedding(2, width)  # only the first row is used: one segment
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, X) int64 -> (B, X, D)."""
        limit = self.positions.num_embeddings
        if input_ids.shape[1] > limit:
            raise ValueError(f"the text has {input_ids.shape[1]} tokens, the position table {limit}; shorten it")
        positions = self.positions.weight[: input_ids.shape[1]]
        return self.dropout(self.norm(self.words(input_ids) + positions + self.types.weight[0]))


class TransformerLayer(nn.Module):
    """Attention and feed-forward, each followed by a residual sum and a norm."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=EPS), nn.LayerNorm(width, eps=EPS)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, N, D), mask (B, 1, 1 or N, N) bool, True = attend -> (B, N, D)."""
        q, k, v = self._heads(x)
        dropout = self.dropout.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)  # (B, h, N, e)
        x = self.norm1(x + self.dropout(self.proj(rearrange(mixed, "b h n e -> b n (h e)"))))
        return self.norm2(x + self.dropout(self.fc2(F.gelu(self.fc1(x)))))

    def received(self, x: Tensor, mask: Tensor) -> Tensor:
        """Attention that each place receives, mean of the heads and sum of the queries, (B, N) float32."""
        q, k, _ = self._heads(x.float())
        scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~mask, -torch.inf)
        return scores.softmax(-1).mean(1).sum(1)

    def _heads(self, x: Tensor) -> Tensor:
        """(3, B, h, N, e)."""
        return rearrange(self.qkv(x.to(self.qkv.weight.dtype)), "b n (s h e) -> s b h n e", s=3, h=self.num_heads)


class TransformerStack(nn.ModuleList):
    """Layers one after the other; an empty stack returns its input."""

    def __init__(self, depth: int, width: int, num_heads: int, dropout: float) -> None:
        super().__init__(TransformerLayer(width, num_heads, dropout) for _ in range(depth))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, N, D), mask (B, 1, 1 or N, N) bool -> (B, N, D)."""
        for layer in self:
            x = layer(x, mask)
        return x

    def received(self, x: Tensor, mask: Tensor) -> Tensor:
        """Attention received by each place, summed over the layers, (B, N) float32."""
        total = x.new_zeros(x.shape[:2], dtype=torch.float32)
        for layer in self:
            total = total + layer.received(x, mask)  # type: ignore[operator]
            x = layer(x, mask)
        return total


def fusion_mask(kind: str, video: Tensor, text: Tensor) -> Tensor:
    """Who attends to whom.

    Args:
        kind: "full", "seq2seq" (text causal, video sees no text) or "video_self" (video sees no text).
        video: True where a video token is real, (B, N) bool.
        text: True where a text token is real, (B, X) bool.

    Returns:
        (B, 1, 1 or N + X, N + X) bool, True = attend; queries are the last axis but one.
    """
    keys = torch.cat([video, text], 1)[:, None, None]
    if kind == "full":
        return keys
    count, words = video.shape[1], text.shape[1]
    pairs = torch.ones(count + words, count + words, dtype=torch.bool, device=video.device)
    pairs[:count, count:] = False
    if kind == "seq2seq":
        pairs[count:, count:] = pairs[count:, count:].tril()
    return keys & pairs
