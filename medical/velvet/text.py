"""TriBERT: one BERT stack that reads a report at word, sentence and report level through its attention mask.

Tokens are [CLS] [SEN_1] w ... [SEN_2] w ...; the row of [SEN_k] sees [CLS], itself and its own sentence, every other
row sees all. The first layers read text; the fusion layers also attend to a volume, and stay bidirectional.
Dims: B reports, N tokens, D width, H heads, E = D / H, V visual tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mm.medical.velvet.config import TextConfig


def visible_tokens(input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor, config: TextConfig) -> Tensor:
    """Which token each token may attend to.

    M_ij = a_j, and in the row of [SEN_k]: M_ij = a_j [j = 0 or t_j = k], with a the padding mask and t the token types.

    Args:
        input_ids: (B, N) int, not yet masked for training.
        token_type_ids: Sentence numbers 1, 2, ..., 0 in the padding, (B, N) int.
        attention_mask: 1 or True = real, (B, N).
        config: Ids of the sentence tokens; `legacy_mask`.

    Returns:
        (B, N, N) bool, rows are queries.

    Source: published code of VELVET-Med. Its mask errs for reports without padding; `legacy_mask` repeats that.
    """
    real = attention_mask.bool()
    visible = real[:, None, :].expand(-1, real.shape[1], -1)
    if not config.sentence_modeling:
        return visible
    sentence = input_ids >= config.first_sentence_id  # (B, N)
    own = token_type_ids[:, :, None] == token_type_ids[:, None, :]
    rows = sentence[:, :, None]
    if config.legacy_mask:
        number, full = sentence.cumsum(1), real.all(1)[:, None]
        later = token_type_ids[:, None, :] >= token_type_ids[:, :, None]
        last_but_one = full & (number == number[:, -1:] - 1)
        own = own | (later & last_but_one[:, :, None])
        rows = rows & ~(full & (number == number[:, -1:]))[:, :, None]
    own = own | (torch.arange(real.shape[1], device=real.device) == 0)
    return visible & (own | ~rows)


class Attention(nn.Module):
    """Multi-head attention, residual and LayerNorm behind it (post-norm)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.num_heads, self.dropout = config.num_heads, config.dropout
        self.query, self.key, self.value, self.out = (nn.Linear(config.width, config.width) for _ in range(4))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, states: Tensor, source: Tensor, visible: Tensor | None = None) -> Tensor:
        """`states` (B, N, D) attend to `source` (B, M, D) where `visible` (B, N, M) is True."""
        heads = "b n (h e) -> b h n e"
        q, k, v = (
            rearrange(layer(x), heads, h=self.num_heads)
            for layer, x in ((self.query, states), (self.key, source), (self.value, source))
        )
        mask = None if visible is None else visible[:, None]
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0
        )
        out = self.out(rearrange(attended, "b h n e -> b n (h e)"))
        return self.norm(states + F.dropout(out, self.dropout, self.training))  # type: ignore[no-any-return]

    def weights(self, states: Tensor, source: Tensor, visible: Tensor | None = None) -> Tensor:
        """Attention weights (B, H, N, M), for display only."""
        q, k = (rearrange(x, "b n (h e) -> b h n e", h=self.num_heads) for x in (self.query(states), self.key(source)))
        scores = q @ k.mT * q.shape[-1] ** -0.5
        if visible is not None:
            scores = scores.masked_fill(~visible[:, None], -torch.inf)
        return scores.softmax(-1)  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """Two linear layers with GELU, residual and LayerNorm behind them."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.expand = nn.Linear(config.width, config.feed_forward)
        self.contract = nn.Linear(config.feed_forward, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, states: Tensor) -> Tensor:
        out = self.contract(F.gelu(self.expand(states)))
        return self.norm(states + F.dropout(out, self.dropout, self.training))  # type: ignore[no-any-return]


class TriBertLayer(nn.Module):
    """Self-attention, in fusion layers cross-attention to the volume, feed-forward."""

    def __init__(self, config: TextConfig, *, fusion: bool) -> None:
        super().__init__()
        self.self_attention = Attention(config)
        self.cross_attention = Attention(config) if fusion else None
        self.feed_forward = FeedForward(config)

    def forward(self, states: Tensor, visible: Tensor, memory: Tensor | None = None) -> Tensor:
        """(B, N, D); without `memory` (B, V, D) the cross-attention is skipped."""
        states = self.self_attention(states, states, visible)
        if self.cross_attention is not None and memory is not None:
            states = self.cross_attention(states, memory)
        return self.feed_forward(states)  # type: ignore[no-any-return]


class Embeddings(nn.Module):
    """Word, sentence-number and position embeddings, summed and normalised."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.word = nn.Embedding(config.vocab_size, config.width, padding_idx=config.pad_id)
        self.position = nn.Embedding(config.max_tokens, config.width)
        self.sentence = nn.Embedding(config.max_sentences + 1, config.width, padding_idx=0)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        if input_ids.shape[1] > self.position.num_embeddings:
            raise ValueError(
                f"the report has {input_ids.shape[1]} tokens, this model has {self.position.num_embeddings} positions"
            )
        states = self.word(input_ids) + self.sentence(token_type_ids) + self.position.weight[: input_ids.shape[1]]
        return F.dropout(self.norm(states), self.dropout, self.training)


class TriBert(nn.Module):
    """Text encoder with word, sentence and report semantics.

    Args:
        config: Sizes.

    Example:
        >>> config = TextConfig(vocab_size=20, width=8, feed_forward=8, layers=2, fusion_layers=1, num_heads=2,
        ...                     max_sentences=4)
        >>> ids, types = torch.tensor([[2, 16, 5, 17, 6, 0]]), torch.tensor([[1, 1, 1, 2, 2, 0]])
        >>> states = TriBert(config)(ids, types, ids != 0, memory=torch.randn(1, 3, 8), layers="all")
        >>> len(states), states[-1].shape
        (4, torch.Size([1, 6, 8]))

    Source: paper, TriBERT. Deviation: the feed-forward part is not cut into chunks of 256 tokens, which changes
        nothing but asks for lengths that are multiples of 256.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        kinds = [False] * config.layers + [True] * config.fusion_layers
        self.layers = nn.ModuleList(TriBertLayer(config, fusion=fusion) for fusion in kinds)

    def visible(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The mask of all layers, see `visible_tokens`; take it from the ids before words are masked."""
        return visible_tokens(input_ids, token_type_ids, attention_mask, self.config)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        attention_mask: Tensor,
        *,
        memory: Tensor | None = None,
        layers: Literal["text", "all"] = "text",
        visible: Tensor | None = None,
    ) -> list[Tensor]:
        """Hidden states of every layer that ran.

        Args:
            input_ids: (B, N) int.
            token_type_ids: Sentence numbers, (B, N) int.
            attention_mask: 1 or True = real, (B, N).
            memory: Visual tokens, (B, V, D); only fusion layers use them.
            layers: text: the text layers; all: the fusion layers as well.
            visible: Ready-made mask (B, N, N), for masked words whose random replacement looks like a sentence token.

        Returns:
            Embedding output and the output of each layer, (B, N, D) each.
        """
        if visible is None:
            visible = self.visible(input_ids, token_type_ids, attention_mask)
        states = [self.embeddings(input_ids, token_type_ids)]
        for layer in self._chosen(layers):
            states.append(layer(states[-1], visible, memory))
        return states

    def fuse(self, states: Tensor, visible: Tensor, memory: Tensor | None) -> Tensor:
        """The fusion layers alone, on the output of the text layers: (B, N, D) -> (B, N, D)."""
        for layer in self.layers[self.config.layers :]:
            states = layer(states, visible, memory)
        return states

    def _chosen(self, layers: Literal["text", "all"]) -> Sequence[nn.Module]:
        if layers not in ("text", "all"):
            raise ValueError(f"layers must be 'text' or 'all', got {layers!r}")
        if layers == "all" and not self.config.fusion_layers:
            raise ValueError("this model has no fusion layers (text.fusion_layers=0)")
        return list(self.layers)[: self.config.layers if layers == "text" else None]
