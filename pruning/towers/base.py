"""What a pruner needs from a vision encoder: run one block at a time, see its heads, let tokens go in between.

Each library gets one `PrunableTower`, which reads the library's modules and never changes them. Queries, keys and
values of a block are computed once and serve both its attention (fused) and the scores.
Dims: B pictures, P prefix tokens, n patches now, u patches per unit, D width, H heads, d head channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from mm.pruning.ragged import gather_rows
from mm.pruning.scores import Heads


@dataclass(frozen=True)
class Stream:
    """Tokens on their way through an encoder. What is kept or dropped are units of u patches (u = 1 for most)."""

    hidden: Tensor
    """Prefix tokens, then patches, (B, P + n u, D)."""
    index: Tensor
    """Raster number of each unit in the full picture, (B, n) int64; padding holds `total`."""
    keep: Tensor | None = None
    """True where a unit is real, (B, n) bool; None while no row is padded."""
    tables: dict[str, Tensor] = field(default_factory=dict)
    """What else belongs to a patch (rotary tables, window slots), each (B, n u, ...)."""
    prefix: int = 0
    """Prefix tokens (P)."""
    unit: int = 1
    """Patches per unit (u)."""
    slots: int = 0
    """Slots of all windows together, the spare one behind them included (windowed towers only)."""
    total: int = 0
    """Units per row of the full pictures (the widest row of a padded batch)."""

    @property
    def patch_keep(self) -> Tensor | None:
        """`keep` for single patches, (B, n u)."""
        return self.keep if self.keep is None or self.unit == 1 else self.keep.repeat_interleave(self.unit, dim=1)

    @property
    def token_keep(self) -> Tensor | None:
        """`keep` with the prefix tokens in front, (B, P + n u)."""
        keep = self.patch_keep
        return None if keep is None else torch.cat([keep.new_ones(len(keep), self.prefix), keep], dim=1)

    def take(self, columns: Tensor, keep: Tensor | None) -> Stream:
        """Keep some units: `columns` (B, m) into the present ones, `keep` (B, m) or None if all of them are real."""
        index = self.index.gather(1, columns)
        if keep is not None:
            index = index.masked_fill(~keep, self.total)
        hidden = torch.cat([self.hidden[:, : self.prefix], self._pick(self.hidden[:, self.prefix :], columns)], dim=1)
        tables = {name: self._pick(table, columns) for name, table in self.tables.items()}
        return replace(self, hidden=hidden, index=index, keep=keep, tables=tables)

    def _pick(self, patches: Tensor, columns: Tensor) -> Tensor:
        if self.unit == 1:
            return gather_rows(patches, columns)
        grouped = patches.unflatten(1, (-1, self.unit))  # (B, n, u, ...)
        return gather_rows(grouped, columns).flatten(1, 2)


class PrunableTower(ABC):
    """A vision encoder, block by block.

    Args:
        module: The library's vision transformer.
        num_blocks: Blocks to run until the features are read.
    """

    has_cls: bool = True
    """Whether token 0 is a class token."""
    num_prefix: int = 1
    """Tokens before the patches (P)."""
    unit: int = 1
    """Patches that leave together (u)."""

    def __init__(self, module: Any, num_blocks: int, final_norm: bool = False) -> None:
        self.module = module
        self.num_blocks = num_blocks
        self.final_norm = final_norm

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """All blocks of the module, also those behind the features."""

    @abstractmethod
    def start(self, pixel_values: Tensor, **inputs: Any) -> Stream:
        """Pictures -> input of block 0."""

    @abstractmethod
    def heads(self, layer: int, stream: Stream) -> Heads:
        """Queries, keys and values of a block."""

    @abstractmethod
    def finish_block(self, layer: int, stream: Stream, mixed: Tensor) -> Tensor:
        """Attention output (B, H, P + n u, d) -> output of the block (B, P + n u, D)."""

    def norm(self, hidden: Tensor) -> Tensor:
        """The norm behind the last block."""
        raise NotImplementedError

    def mix(self, layer: int, stream: Stream, heads: Heads) -> Tensor:
        """Attention of a block, (B, H, P + n u, d)."""
        mask = stream.token_keep
        return F.scaled_dot_product_attention(
            heads.query,
            heads.key,
            heads.value,
            attn_mask=None if mask is None else rearrange(mask, "b n -> b 1 1 n"),
            scale=heads.scale,
        )

    def block(self, layer: int, stream: Stream) -> tuple[Stream, Heads]:
        """Run one block: the stream behind it, and its heads."""
        heads = self.heads(layer, stream)
        hidden = self.finish_block(layer, stream, self.mix(layer, stream, heads))
        return replace(stream, hidden=hidden), heads

    def finish(self, stream: Stream) -> tuple[Tensor, Tensor | None]:
        """Features of the units (B, n, D') and the class token (B, D) or None."""
        hidden = self.norm(stream.hidden) if self.final_norm else stream.hidden
        return hidden[:, stream.prefix :], hidden[:, 0] if self.has_cls else None


def full_stream(hidden: Tensor, prefix: int) -> Stream:
    """The stream of equally large pictures, nothing dropped yet: hidden (B, P + N, D)."""
    total = hidden.shape[1] - prefix
    index = torch.arange(total, device=hidden.device).expand(len(hidden), total)
    return Stream(hidden, index, prefix=prefix, total=total)


def split_heads(projected: Tensor, num_heads: int) -> Tensor:
    """(B, n, H d) -> (B, H, n, d)."""
    return rearrange(projected, "b n (h d) -> b h n d", h=num_heads)


def join_heads(mixed: Tensor) -> Tensor:
    """(B, H, n, d) -> (B, n, H d)."""
    return rearrange(mixed, "b h n d -> b n (h d)")
