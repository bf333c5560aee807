"""The transformer on both sides of the codebook: class token, learned positions, pre-norm blocks, a norm on patches.

Queries and values have a bias, keys have none; the class token takes part in attention and is dropped at the end.
Dims: B pictures, h = w patches along a side, N = h * w, W width, H heads, E = W / H.
Source: the tokenizer of BEiT v2 (arXiv:2208.06366), as published in its code; tensor names follow it.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mm.codecs.semantic_vq.config import ViTConfig

EPS = 1e-6
INIT_STD = 0.02
"""Spread of fresh weights at the published width of 768; narrower transformers get more, as 1 / sqrt(width)."""
PUBLISHED_WIDTH = 768


class PatchTransformer(nn.Module):
    """A square map of channels -> one vector per patch.

    Args:
        config: Sizes.
        channels: Of the input: 3 for pictures, the width of a code for the decoder.
        patch_size: Side of a patch in cells of the input; 1 for the decoder.
        side: Patches along one side of the input.
    """

    def __init__(self, config: ViTConfig, *, channels: int, patch_size: int, side: int) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(channels, config.width, patch_size, stride=patch_size)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, side * side + 1, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.fc_norm = nn.LayerNorm(config.width, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, side * patch_size, side * patch_size) -> patch tokens in raster order, (B, N, W)."""
        tokens = rearrange(self.patch_embed["proj"](x), "b w i j -> b (i j) w")
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        return self.fc_norm(tokens[:, 1:])

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Truncated normal; the outputs of block i are divided by sqrt(2 i), counted from 1."""
        std = spread(self.cls_token.shape[-1])
        for tensor in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(tensor, std=std, generator=generator)
        init_linear(self, generator, std)
        for number, block in enumerate(self.blocks, 1):
            for linear in (block.attn.proj, block.mlp.fc2):  # type: ignore[union-attr]
                linear.weight.div_(math.sqrt(2 * number))  # type: ignore[union-attr, operator]


class Block(nn.Module):
    """Attention and feed-forward part, each behind its norm and added to its input."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=EPS)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=EPS)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1 + N, W) -> (B, 1 + N, W)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Self-attention over all tokens; a key bias would cancel in the softmax and does not exist."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(config.width))
        self.v_bias = nn.Parameter(torch.zeros(config.width))
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1 + N, W) -> (B, 1 + N, W)."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias)
        q, k, v = rearrange(qkv, "b n (three h e) -> three b h n e", three=3, h=self.num_heads)
        return self.proj(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n e -> b n (h e)"))


class FeedForward(nn.Module):
    """Two linear maps with GELU between them."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_ratio * config.width)
        self.fc2 = nn.Linear(config.mlp_ratio * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., W) -> (..., W)."""
        return self.fc2(F.gelu(self.fc1(x)))


class TaskLayer(nn.Sequential):
    """Linear, Tanh, Linear: the way into the codebook and out to the teacher's features.

    Args:
        width: Channels of the input.
        out: Channels of the output.
        exact: Compute in float32 whatever the surrounding precision: rounding in front of the codebook flips codes.
    """

    def __init__(self, width: int, out: int, *, exact: bool = False) -> None:
        super().__init__(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, out))
        self.exact = exact

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., out), float32 if `exact`."""
        if not self.exact:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            first, last = cast(nn.Linear, self[0]), cast(nn.Linear, self[2])
            hidden = F.linear(x.float(), first.weight.float(), first.bias.float()).tanh()
            return F.linear(hidden, last.weight.float(), last.bias.float())


def spread(width: int) -> float:
    """Standard deviation of fresh weights at this width."""
    return INIT_STD * max(1.0, math.sqrt(PUBLISHED_WIDTH / width))


@torch.no_grad()
def init_linear(module: nn.Module, generator: torch.Generator, std: float = INIT_STD) -> None:
    """Truncated-normal weights and zero biases for every linear map and convolution inside."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(part.weight, std=std, generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
