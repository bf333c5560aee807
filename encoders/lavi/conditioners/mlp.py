"""MLP conditioner in the manner of MLP-Mixer: each text token is mixed with P visual slots, only its own is read.

    G = A_v S               (h x C, once per image; S: the P slots)
    T_i = gelu(G + a u_i^T + b) - gelu(a u_i^T + b),   u_i = W_q y0_i        (h x C per text token)
    z_i = T_i^T o,          z_i <- z_i + W_b gelu(W_a norm(z_i)),            [dgamma; dbeta] = W_o z_i

A literal mixer over text and vision would mix text positions and leak the future; here every token is mixed with the
pictures alone. The subtracted term makes "no vision, no delta" exact.

Source: arXiv:2506.16691 studies an MLP-based variant. Deviation: its structure is unknown; this one is ours. Visual
tokens are averaged in reading order into P slots, which keeps the order of tiles and frames; a single tile stays a
plane when `pool` * `pool` = P.
Dims: B context rows, N text tokens, M visual tokens, P slots, h token-mixing width, C width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mm.encoders.lavi.conditioners.base import BlockConditioner, Grid, Memory, SiteConditioner, linear, scaled_normal_
from mm.encoders.lavi.config import LaviConfig, Site

CHUNK_ELEMENTS = 1 << 24
"""Numbers held at once in the (B, N, h, C) mixing tensor; longer texts are worked off in parts."""


class MlpSite(SiteConditioner):
    """Mixes one text token with the visual slots, then its channels."""

    def __init__(self, config: LaviConfig, width: int) -> None:
        super().__init__(config, width)
        hidden = config.token_hidden
        self.q_proj = linear(width, config.width)
        self.text_weight = nn.Parameter(torch.empty(hidden))
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.read_weight = nn.Parameter(torch.empty(hidden))
        self.norm = nn.LayerNorm(config.width, bias=False)
        self.fc1 = linear(config.width, config.channel_hidden)
        self.fc2 = linear(config.channel_hidden, config.width)
        scaled_normal_(self.text_weight, 1)
        scaled_normal_(self.read_weight, hidden)

    def read(self, tokens: Tensor, memory: Memory, mask: Tensor | None) -> Tensor:
        """(B, N, D) tokens and (B, h, C) mixed slots -> (B, N, C). `mask` is not used: slots are merged."""
        (mixed,) = memory
        query = self.q_proj(tokens)
        size = max(1, CHUNK_ELEMENTS // mixed.numel())
        if query.shape[1] <= size:
            found = self._mix(mixed, query)
        else:  # each part is computed again in backward, so that the large tensor never exists as a whole
            found = torch.cat([checkpoint(self._mix, mixed, q, use_reentrant=False) for q in query.split(size, 1)], 1)
        return found + self.fc2(F.gelu(self.fc1(self.norm(found))))

    def _mix(self, mixed: Tensor, query: Tensor) -> Tensor:
        """Token mixing of one part of the text, (B, n, C)."""
        text = self.text_weight.unsqueeze(-1) * query.unsqueeze(2) + self.bias.unsqueeze(-1)  # (B, n, h, C)
        # Both terms have one memory layout, so that equal numbers are rounded equally and cancel exactly.
        change = F.gelu(mixed.unsqueeze(1) + text) - F.gelu(text)
        return torch.einsum("bnhc,h->bnc", change, self.read_weight)


class MlpConditioner(BlockConditioner):
    """Token-wise mixing with a fixed number of visual slots."""

    site_class = MlpSite
    slot_wise = False

    def __init__(self, config: LaviConfig, width: int, sites: tuple[Site, ...]) -> None:
        super().__init__(config, width, sites)
        self.token_proj = linear(config.num_slots, config.token_hidden)

    def prepare(self, tokens: Tensor, mask: Tensor | None, grid: Grid | None) -> Memory:
        """G = A_v S, (B, h, C)."""
        slots = ordered_slots(tokens, mask, self.config.num_slots)  # (B, P, C)
        return (self.token_proj(slots.mT).mT.contiguous(),)

    def slot_mask(self, mask: Tensor | None, grid: Grid | None) -> Tensor | None:
        """None: the slots are merged."""
        return None

    def slot_ids(self, ids: Tensor | None, grid: Grid | None) -> Tensor | None:
        """None: a slot may hold several tiles."""
        return None


def ordered_slots(tokens: Tensor, mask: Tensor | None, num_slots: int) -> Tensor:
    """Average the real tokens of each row, in order, into a fixed number of slots; slots without a token are zero.

    The j-th of n real tokens goes to slot floor(j * P / n), so masked tokens have no influence at all.

    Args:
        tokens: (B, M, C).
        mask: True where a token is real, (B, M) bool, or None when all are.
        num_slots: P.

    Returns:
        (B, P, C).
    """
    real = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask
    rank = real.cumsum(1) - 1
    slot = (rank * num_slots).div(real.sum(1, keepdim=True).clamp_min(1), rounding_mode="floor").clamp_min(0)
    weight = real.to(tokens.dtype).unsqueeze(-1)
    index = slot.unsqueeze(-1)
    total = tokens.new_zeros(len(tokens), num_slots, tokens.shape[-1])
    total = total.scatter_add(1, index.expand_as(tokens), tokens * weight)
    count = tokens.new_zeros(len(tokens), num_slots, 1).scatter_add(1, index, weight)
    return total / count.clamp_min(1)
