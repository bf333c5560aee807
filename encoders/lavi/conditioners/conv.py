"""Convolution conditioner in the manner of ConvMixer: convolutions mix the patch plane, the text reads a few cells.

    R = pool(ConvMixer(V))                           (p*p cells per tile, once per image set)
    z_i = sigmoid(W_q y0_i) * sum_j w_ij R_j,        w_i = softmax(W_c y0_i) over cells,    [dgamma; dbeta] = W_o z_i

Convolutions run over vision only and have no bias, so an empty picture stays empty. With several tiles the cell weights
are the same for each tile and the softmax runs over all of them, so tiles are averaged.

Source: arXiv:2506.16691 studies a convolution-based variant. Deviation: its structure is unknown; this one is ours.
Dims: B context rows, N text tokens, T tiles, h x w grid, p cells per side, S = T*p*p, C width.
"""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from mm.encoders.lavi.conditioners.base import BlockConditioner, Grid, Memory, SiteConditioner, linear, scaled_normal_
from mm.encoders.lavi.config import LaviConfig, Site


class ConvSite(SiteConditioner):
    """A text token weighs the cells of the plane and gates what it reads."""

    def __init__(self, config: LaviConfig, width: int) -> None:
        super().__init__(config, width)
        self.q_proj = linear(width, config.width)
        self.cell_proj = linear(width, config.cells**2)

    def read(self, tokens: Tensor, memory: Memory, mask: Tensor | None) -> Tensor:
        """(B, N, D) tokens and (B, S, C) cells -> (B, N, C)."""
        (cells,) = memory
        scores = self.cell_proj(tokens).float()
        scores = repeat(scores, "b n p -> b n (t p)", t=cells.shape[1] // scores.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        found = scores.softmax(-1).to(cells.dtype) @ cells
        return torch.sigmoid(self.q_proj(tokens)) * found


class ConvMixerBlock(nn.Module):
    """Depthwise convolution with residual, then a pointwise one."""

    def __init__(self, width: int, kernel_size: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, kernel_size, padding=kernel_size // 2, groups=width, bias=False)
        self.pointwise = nn.Conv2d(width, width, 1, bias=False)
        scaled_normal_(self.depthwise.weight, kernel_size**2)
        scaled_normal_(self.pointwise.weight, width)

    def forward(self, plane: Tensor) -> Tensor:
        """(B*T, C, h, w) -> the same shape."""
        plane = plane + F.gelu(self.depthwise(plane))
        return F.gelu(self.pointwise(plane))


class ConvConditioner(BlockConditioner):
    """Token-wise reading of a convolved patch plane."""

    site_class = ConvSite

    def __init__(self, config: LaviConfig, width: int, sites: tuple[Site, ...]) -> None:
        super().__init__(config, width, sites)
        self.mixer = nn.Sequential(
            *(ConvMixerBlock(config.width, config.kernel_size) for _ in range(config.conv_depth))
        )

    def prepare(self, tokens: Tensor, mask: Tensor | None, grid: Grid | None) -> Memory:
        """The pooled cells of every tile, (B, T*p*p, C); padded tokens count as zero.

        Raises:
            ValueError: no grid.
        """
        height, width = _required(grid)
        if mask is not None:
            tokens = tokens * mask.unsqueeze(-1)
        plane = rearrange(tokens, "b (t h w) c -> (b t) c h w", h=height, w=width)
        cells = F.adaptive_avg_pool2d(self.mixer(plane), self.config.cells)
        return (rearrange(cells, "(b t) c p q -> b (t p q) c", b=len(tokens)),)

    def slot_mask(self, mask: Tensor | None, grid: Grid | None) -> Tensor | None:
        """Cells of tiles with at least one real token, (B, T*p*p)."""
        if mask is None:
            return None
        height, width = _required(grid)
        real = rearrange(mask, "b (t n) -> b t n", n=height * width).any(-1)
        return repeat(real, "b t -> b (t p)", p=self.config.cells**2)

    def slot_ids(self, ids: Tensor | None, grid: Grid | None) -> Tensor | None:
        """Ids of the tile a cell belongs to, (B, T*p*p)."""
        if ids is None:
            return None
        height, width = _required(grid)
        first = rearrange(ids, "b (t n) -> b t n", n=height * width)[..., 0]
        return repeat(first, "b t -> b (t p)", p=self.config.cells**2)


def _required(grid: Grid | None) -> Grid:
    if grid is None:
        raise ValueError(
            "the conv conditioner needs to know the patch plane: pass grid=(rows, columns) to encode_vision"
        )
    return grid
