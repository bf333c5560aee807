"""Methods that drop visual tokens between the blocks of the language model.

A method lists its cuts; for each one it sees the input of one block and says which visual tokens stay. Everything else
(positions, masks, caches of unequal length, decoding) is `mm.pruning.llm_hooks`.
Dims: B prompts, n tokens now, D width, H query heads, G key/value heads, R rating tokens, d head channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn


@dataclass(frozen=True)
class Prompt:
    """Where the pictures are in the tokens that are left."""

    picture: Tensor
    """Number of the picture within its prompt, (B, n) int64; -1 for text and padding."""
    real: Tensor
    """False at padding, (B, n) bool."""
    question: Tensor
    """Column of the last prompt token before the answer, (B,) int64."""
    pictures: int
    """Largest number of pictures in one prompt."""
    raters: Tensor | None = None
    """Text tokens that rate the pictures, (B, n) bool; only methods that choose some set it."""

    @property
    def visual(self) -> Tensor:
        """True for visual tokens, (B, n)."""
        return self.picture >= 0

    @property
    def text(self) -> Tensor:
        """True for real tokens that are not visual, (B, n)."""
        return self.real & ~self.visual

    def take(self, columns: Tensor, real: Tensor) -> Prompt:
        """The prompt after a cut."""
        question = ((columns == self.question[:, None]) & real).int().argmax(dim=1)
        picture = self.picture.gather(1, columns).masked_fill(~real, -1)
        raters = None if self.raters is None else self.raters.gather(1, columns) & real
        return replace(
            self, picture=picture, real=self.real.gather(1, columns) & real, question=question, raters=raters
        )


@dataclass(frozen=True)
class Block:
    """One block of the language model and its input during the prompt's pass."""

    module: Any
    """The decoder block: `input_layernorm` and `self_attn` with separate projections."""
    hidden: Tensor
    """Input of the block, (B, n, D)."""
    rotary: tuple[Tensor, Tensor]
    """Tables (cos, sin) of the tokens, each (B|1, n, d)."""

    def heads(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
        """Queries of chosen tokens, keys and values of all: q (B, H, R, d), k and v (B, G, n, d), scale.

        Args:
            rows: Columns of the rating tokens, (B, R) int64.

        Raises:
            ValueError: the block keeps its projections elsewhere.
        """
        attention = self.module.self_attn
        if not all(hasattr(attention, name) for name in ("q_proj", "k_proj", "v_proj")):
            raise ValueError(
                f"{type(attention).__name__} has no separate q_proj, k_proj and v_proj, which methods inside the "
                "language model need; use a method that works in the encoder"
            )
        normed = self.module.input_layernorm(self.hidden)
        chosen = normed.gather(1, rows[..., None].expand(-1, -1, normed.shape[-1]))
        split = {"query": attention.q_proj(chosen), "key": attention.k_proj(normed), "value": attention.v_proj(normed)}
        query, key, value = (rearrange(x, "b n (h d) -> b h n d", d=attention.head_dim) for x in split.values())
        if hasattr(attention, "q_norm"):
            query, key = attention.q_norm(query), attention.k_norm(key)
        cos, sin = (table.expand(len(rows), -1, -1) for table in self.rotary)
        picked = [table.gather(1, rows[..., None].expand(-1, -1, table.shape[-1])) for table in (cos, sin)]
        query, key = _rotate(query, *picked), _rotate(key, cos, sin)
        return query, key, value, float(attention.scaling)


def _rotate(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: (B, H, n, d) with tables (B, n, d)."""
    first, second = values.chunk(2, dim=-1)
    return values * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]


def products(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Logits of grouped-query attention in float32: (B, H, R, d) and (B, G, n, d) -> (B, H, R, n)."""
    grouped = rearrange(query.float(), "b (g r) q d -> b g r q d", g=key.shape[1])
    logits = torch.einsum("bgrqd,bgnd->bgrqn", grouped, key.float()) * scale
    return rearrange(logits, "b g r q n -> b (g r) q n")


def attention_rows(block: Block, rows: Tensor, prompt: Prompt) -> Tensor:
    """Causal attention of chosen tokens over all tokens, mean over heads: (B, R, n) float32."""
    query, key, _, scale = block.heads(rows)
    places = torch.arange(key.shape[2], device=key.device)
    visible = (places <= rows[..., None]) & prompt.real[:, None]  # (B, R, n)
    visible = visible | ~visible.any(dim=-1, keepdim=True)  # a padding row sees nothing; its result is not used
    logits = products(query, key, scale).masked_fill(~visible[:, None], -torch.inf)
    return logits.softmax(dim=-1).mean(dim=1)


@dataclass(frozen=True)
class Cut:
    """One place where tokens leave."""

    scored_by: int
    """Block (from 0) whose input and projections decide."""
    before: int
    """Block (from 0) that is the first to run without them; `scored_by` or the one behind it."""
    number: int = 0
    """Position among the method's cuts."""


@dataclass(frozen=True)
class Selection:
    """Which tokens stay after a cut."""

    keep: Tensor
    """True for tokens that stay, (B, n) bool; text always does."""
    home: Tensor | None = None
    """Where something of a dropped token goes on: `RECYCLED` groups, (B, n) int64, -1 for none. The lowest column of a
    group stays (it is in `keep`) and takes the sum of the group."""


class LanguageStage(ABC):
    """Drops visual tokens inside the language model."""

    positions: Literal["reindex", "keep"] = "reindex"
    """Position ids behind a cut: counted anew, or those of before. Multimodal positions (M-RoPE) are always kept."""

    @abstractmethod
    def cuts(self, depth: int) -> Sequence[Cut]:
        """Where tokens leave in a language model of `depth` blocks.

        Raises:
            ValueError: it has too few blocks.
        """

    def begin(self, prompt: Prompt, embedded: Tensor) -> Prompt:
        """Look at the input embeddings (B, n, D) before block 0; may choose raters."""
        return prompt

    @abstractmethod
    def select(self, cut: Cut, block: Block, prompt: Prompt, first: Prompt) -> Selection:
        """Decide one cut.

        Args:
            cut: Which one.
            block: The block that scores.
            prompt: Tokens in front of the cut.
            first: Tokens in front of the first cut.
        """


def keep_best(scores: Tensor, prompt: Prompt, counts: Tensor) -> Tensor:
    """The best visual tokens of every picture, and all text: (B, n) bool. Equal scores: the lower column wins.

    Args:
        scores: (B, n) float32; only visual tokens count.
        prompt: Where the pictures are.
        counts: Tokens to keep of each picture, (B, pictures) int64.
    """
    keep = ~prompt.visual
    for picture in range(prompt.pictures):
        mine = prompt.picture == picture
        order = scores.masked_fill(~mine, -torch.inf).sort(dim=1, descending=True, stable=True).indices
        places = torch.arange(order.shape[1], device=order.device).expand_as(order)
        rank = torch.empty_like(order).scatter_(1, order, places)
        keep = keep | (mine & (rank < counts[:, picture : picture + 1]))
    return keep


def picture_sizes(prompt: Prompt) -> Tensor:
    """Visual tokens of each picture, (B, pictures) int64."""
    numbers = torch.arange(prompt.pictures, device=prompt.picture.device)
    return (prompt.picture[:, None] == numbers[:, None]).sum(dim=2)


def check_depth(cuts: Sequence[Cut], depth: int, name: str) -> Sequence[Cut]:
    """Every cut must leave at least one block to run without the dropped tokens.

    Raises:
        ValueError: the language model is too shallow.
    """
    last = max(cut.before for cut in cuts)
    if last >= depth:
        raise ValueError(f"{name} drops tokens in front of block {last}, this language model has blocks 0..{depth - 1}")
    return cuts


def decoder_blocks(language_model: nn.Module) -> nn.ModuleList:
    """The blocks of a decoder."""
    return language_model.layers  # type: ignore[return-value]
