"""What every conditioner shares: one interface, one zero-initialised output, one rule for initial weights.

A conditioner of one block has two halves. `prepare` turns the visual tokens into the block's memory, once per image
set. The site conditioners (one per modulated norm) read that memory for each text token and give its deltas:

    Cond(y0, memory) -> (dgamma, dbeta),    y0 = pretrained norm of the hidden state

Three properties hold for all of them, and each has a test: a text token meets visual tokens only, never another text
token (causal, safe with a key/value cache); no vision gives exactly zero, because every path from the memory to the
output is free of biases; at the start all deltas are zero through one zero factor only (`out_proj`), so that gradients
flow.

Dims: B context rows, N text tokens (beams included), M visual tokens, S memory slots, C conditioner, D model width.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from mm.encoders.lavi.config import LaviConfig, Site

Memory = tuple[Tensor, ...]
Grid = tuple[int, int]
Deltas = tuple[Tensor | None, Tensor | None]
"""(dgamma, dbeta); None for a parameter that is not modulated."""


class SiteConditioner(nn.Module):
    """Deltas for one norm. Subclasses write `read`; the output projection stands here."""

    def __init__(self, config: LaviConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.out_proj = nn.Linear(config.width, config.affine_parts * width, bias=False)
        nn.init.zeros_(self.out_proj.weight)

    def read(self, tokens: Tensor, memory: Memory, mask: Tensor | None) -> Tensor:
        """What each text token takes from the pictures, (B, N, C) (or one value per row, (B, 1, C)).

        Args:
            tokens: Output of the pretrained norm, (B, N, D).
            memory: What `prepare` gave for this block.
            mask: True = readable, (B, N or 1, S) bool with no empty row, or None.
        """
        raise NotImplementedError

    def forward(
        self, tokens: Tensor, memory: Memory, mask: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """(dgamma, dbeta), each (B, N or 1, D) or None when that parameter is not modulated."""
        found = self.read(tokens.to(self.out_proj.weight.dtype), memory, mask)
        if self.config.activation == "silu":
            found = F.silu(found)
        deltas = self.out_proj(found)
        if self.config.modulate == "both":
            scale, shift = deltas.chunk(2, dim=-1)
            return scale, shift
        return (deltas, None) if self.config.modulate == "scale" else (None, deltas)


class BlockConditioner(nn.Module):
    """Both sites of one block and the memory they share. Children named "attn" and "ffn" are the sites."""

    site_class: ClassVar[type[SiteConditioner]]
    slot_wise: ClassVar[bool] = True
    """Slots can be masked, shown per image and appended one by one."""

    def __init__(self, config: LaviConfig, width: int, sites: tuple[Site, ...]) -> None:
        super().__init__()
        self.config = config
        for site in sites:
            self.add_module(site, self.site_class(config, width))

    def site(self, name: str) -> SiteConditioner:
        """The conditioner of one norm ("attn" or "ffn")."""
        return self.get_submodule(name)  # type: ignore[return-value]

    def prepare(self, tokens: Tensor, mask: Tensor | None, grid: Grid | None) -> Memory:
        """Memory of this block.

        Args:
            tokens: Visual tokens, (B, M, C).
            mask: True where a token is real, (B, M) bool, or None when all are.
            grid: (h, w) of every tile, for conditioners that need the plane.

        Returns:
            Tensors of shape (B, S, ...).
        """
        raise NotImplementedError

    def slot_mask(self, mask: Tensor | None, grid: Grid | None) -> Tensor | None:
        """Which slots are real, (B, S) bool, given which tokens are; None when all are or slots are merged anyway."""
        return mask

    def slot_ids(self, ids: Tensor | None, grid: Grid | None) -> Tensor | None:
        """Tile, frame or image of each slot, (B, S), given that of each token, (B, M)."""
        return ids


def linear(fan_in: int, fan_out: int) -> nn.Linear:
    """A projection without bias at the toolkit's starting scale."""
    layer = nn.Linear(fan_in, fan_out, bias=False)
    scaled_normal_(layer.weight, fan_in)
    return layer


def scaled_normal_(weight: Tensor, fan_in: int) -> None:
    """Truncated normal with std 1/sqrt(fan_in).

    Deviation: the paper's initialisation is unknown. At 7B width this is the usual 0.02 (0.017 to 0.031); unlike a
    fixed 0.02 it keeps the size of activations at small widths too.
    """
    std = fan_in**-0.5
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
