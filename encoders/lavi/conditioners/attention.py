"""Attention conditioner, the paper's choice: every text token queries the visual tokens.

    q = W_q y0,  k, v = W_k V, W_v V,  z = softmax(q k^T / sqrt(C/H)) v,  [dgamma; dbeta] = W_o z

Keys and values are shared by the two sites of a block, have fewer heads than the queries and are computed once per
image set; at 7B size they take 5 MB for 729 tokens. There is no residual from q to z: with it the conditioner would be
an adapter that changes the language model without any picture.

Source: arXiv:2506.16691 (attention-based conditioning is the chosen variant). Deviation: its exact structure is
unknown; grouped key/value heads, sharing per block and the per-head norm of q and k are choices made here.
Dims: B context rows, N text tokens, S visual tokens, C width, H query heads, G key/value heads, R = H/G, E = C/H.
"""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from mm.encoders.lavi.conditioners.base import BlockConditioner, Grid, Memory, SiteConditioner, linear
from mm.encoders.lavi.config import LaviConfig, Site


class KeyValue(nn.Module):
    """Visual keys and values of one block."""

    def __init__(self, config: LaviConfig) -> None:
        super().__init__()
        head = config.width // config.num_heads
        self.num_heads = config.num_kv_heads
        self.k_proj = linear(config.width, config.kv_width)
        self.v_proj = linear(config.width, config.kv_width)
        self.k_norm = nn.RMSNorm(head, eps=1e-6) if config.qk_norm else nn.Identity()

    def forward(self, tokens: Tensor) -> Memory:
        """(B, S, C) -> keys and values, (B, S, G*E) each."""
        keys = rearrange(self.k_proj(tokens), "b s (g e) -> b s g e", g=self.num_heads)
        return rearrange(self.k_norm(keys), "b s g e -> b s (g e)"), self.v_proj(tokens)


class AttentionSite(SiteConditioner):
    """Reads the visual keys and values of its block."""

    def __init__(self, config: LaviConfig, width: int) -> None:
        super().__init__(config, width)
        self.q_proj = linear(width, config.width)
        self.q_norm = nn.RMSNorm(config.width // config.num_heads, eps=1e-6) if config.qk_norm else nn.Identity()

    def read(self, tokens: Tensor, memory: Memory, mask: Tensor | None) -> Tensor:
        """Attention of (B, N, D) tokens to the visual slots, (B, N, C)."""
        query = self.queries(tokens)
        key, value = (rearrange(x, "b s (g e) -> b g s e", g=self.config.num_kv_heads) for x in memory)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=self._per_query(mask))  # (B, G, R*N, E)
        return rearrange(found, "b g (r n) e -> b n (g r e)", n=tokens.shape[1])

    def queries(self, tokens: Tensor) -> Tensor:
        """Queries with the heads of a group behind each other, (B, G, R*N, E): keys and values are never repeated."""
        query = rearrange(self.q_proj(tokens), "b n (h e) -> b n h e", h=self.config.num_heads)
        return rearrange(self.q_norm(query), "b n (g r) e -> b g (r n) e", g=self.config.num_kv_heads)

    def weights(self, tokens: Tensor, memory: Memory, mask: Tensor | None) -> Tensor:
        """The attention weights themselves, (B, N, H, S), in float32; for looking at, not for the forward pass."""
        query = self.queries(tokens.to(self.out_proj.weight.dtype)).float()
        key = rearrange(memory[0].float(), "b s (g e) -> b g s e", g=self.config.num_kv_heads)
        scores = torch.einsum("bgqe,bgse->bgqs", query, key) * query.shape[-1] ** -0.5
        mask = self._per_query(mask)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return rearrange(scores.softmax(-1), "b g (r n) s -> b n (g r) s", n=tokens.shape[1])

    def _per_query(self, mask: Tensor | None) -> Tensor | None:
        """(B, N or 1, S) -> (B, 1, R*N or 1, S), in the order of `queries`."""
        if mask is None or mask.shape[1] == 1:
            return None if mask is None else mask.unsqueeze(1)
        return repeat(mask, "b n s -> b 1 (r n) s", r=self.config.num_heads // self.config.num_kv_heads)


class AttentionConditioner(BlockConditioner):
    """Token-wise cross-attention to the visual tokens."""

    site_class = AttentionSite

    def __init__(self, config: LaviConfig, width: int, sites: tuple[Site, ...]) -> None:
        super().__init__(config, width, sites)
        self.kv = KeyValue(config)

    def prepare(self, tokens: Tensor, mask: Tensor | None, grid: Grid | None) -> Memory:
        """Keys and values, (B, M, G*E) each."""
        return self.kv(tokens)  # type: ignore[no-any-return]
