"""AudioMAE encoder: a ViT over the mel segment; its last blocks, normed and averaged, are the features to quantise.

Patches of 16 x 16 run time-major, frequency-minor. The fixed position table was made for the transposed grid
(frequency rows of 64 columns) and is read row by row all the same; the published weights were trained with that, so it
is kept.
Dims: B segments, T frames, F mel bins, N patches, D width.
Source: Huang et al. 2022 (arXiv:2207.06405); SemantiCodec section III-A for the average over blocks.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from einops import rearrange
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mm.codecs.semanticodec.config import PATCH, AudioMaeConfig


class PatchEmbedding(nn.Module):
    """16 x 16 patches of the mel picture, flattened time-major."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, width, PATCH, PATCH)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, T, F) -> (B, N, D)."""
        return rearrange(self.proj(frames[:, None]), "b d t f -> b (t f) d")


class AudioMae(nn.Module):
    """ViT encoder without masking; frozen in the codec.

    Args:
        config: Sizes.
    """

    def __init__(self, config: AudioMaeConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbedding(config.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        table = position_table(config.width, config.grid)
        self.pos_embed = nn.Parameter(table[None], requires_grad=False)
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.ModuleList(
            Block(config.width, config.num_heads, config.mlp_ratio, qkv_bias=True, norm_layer=norm)
            for _ in range(config.depth)
        )
        self.norm = norm(config.width)
        nn.init.normal_(self.cls_token, std=0.02)

    def forward(self, frames: Tensor, visible: Tensor | None = None) -> Tensor:
        """Features of whole segments.

        Args:
            frames: Normalised filter bank, (B, T, F) = the sizes of the config.
            visible: Indices of the patches to look at, (B, M) int64 (masked pretraining); none takes all.

        Returns:
            Mean over the last blocks of their normed outputs, (B, 1 + N, D); slot 0 is the class token.
        """
        return torch.stack([self.norm(x) for x in self.block_outputs(frames, visible)]).mean(0)

    def block_outputs(self, frames: Tensor, visible: Tensor | None = None) -> list[Tensor]:
        """Outputs of the averaged blocks, in front of the final norm, each (B, 1 + N, D)."""
        x = self.patch_embed(frames.to(self.cls_token.dtype)) + self.pos_embed[:, 1:]
        if visible is not None:
            x = x.take_along_dim(visible[..., None], dim=1)
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1), x], dim=1)
        outputs = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index >= self.config.depth - self.config.averaged_blocks:
                outputs.append(x)
        return outputs


def position_table(width: int, grid: tuple[int, int]) -> Tensor:
    """Two-dimensional sine-cosine codes, (1 + N, D); row 0 (class token) is zero.

    Slot i carries the code of row i // T and column i % T of a grid with F rows and T columns: the transposed order of
    the patches. The first half of the channels encodes the column, the second the row, each sines then cosines.

    Args:
        width: Channels (D), a multiple of 4.
        grid: Patches along time and frequency (T, F).
    """
    time, frequency = grid
    slot = torch.arange(time * frequency, dtype=torch.float64)
    rate = 10_000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    codes = [place[:, None] * rate for place in (slot % time, slot // time)]
    table = torch.cat([part for angle in codes for part in (angle.sin(), angle.cos())], dim=1)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), table]).float()
