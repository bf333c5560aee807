"""T-UNet: the network that predicts v of a noisy mel latent from the token features.

A U-Net over (time, frequency). At every attention site two transformers follow one another: the first attends to the
latent itself only, the second also to the condition.
Dims: B batch, C channels, T latent frames, F latent bins, N condition tokens, P positions T F, H heads, E head width.
Source: SemantiCodec (arXiv:2405.00233), section III-C; the network of AudioLDM 2 (arXiv:2308.05734).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mm.codecs.semanticodec.config import UNetConfig
from mm.codecs.semanticodec.decoder_parts import GroupNorm, Upsample, position_code, zeroed
from mm.kernels import attention

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of one cross-attention, (B, H, N, E) each."""
Context = list[KeyValue]
"""One entry per cross-attention, in the order of the network."""
HEADS = "b n (h e) -> b h n e"
OWN_TOKEN_GAIN = 3.0
"""Where queries know their place, this weight of both codes makes a fresh head look at the own token in the main."""


def timestep_code(timesteps: Tensor, width: int) -> Tensor:
    """Cosines, then sines of t 10000^(-i / (width / 2)), (B, width) float32, from timesteps (B,)."""
    half = width // 2
    rates = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half)
    angles = timesteps[:, None].float() * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def repeated(x: Tensor, rows: int) -> Tensor:
    """All rows of `x` (B, ...) again and again until there are `rows`, a multiple of B."""
    return x if len(x) == rows else x.repeat(rows // len(x), *[1] * (x.dim() - 1))


class ResBlock(nn.Module):
    """Two normed convolutions; the time code is added between them."""

    def __init__(self, width_in: int, width_out: int, config: UNetConfig) -> None:
        super().__init__()
        self.norm1 = GroupNorm(config.norm_groups, width_in, eps=1e-5)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.time = nn.Linear(4 * config.width, width_out)
        self.norm2 = GroupNorm(config.norm_groups, width_out, eps=1e-5)
        self.conv2 = zeroed(nn.Conv2d(width_out, width_out, 3, padding=1))
        self.skip = nn.Identity() if width_in == width_out else nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """(B, C, T, F) and the time code (B, 4 width) -> (B, C', T, F)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time(F.silu(code))[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head attention; queries, keys and values without bias.

    Args:
        width: Channels of the queries (C).
        context_width: Channels of what they attend to (C').
        head_width: Channels per head (E).
        place_width: Channels of a code of each query's place; 0 is none.
    """

    def __init__(self, width: int, context_width: int, head_width: int, place_width: int = 0) -> None:
        super().__init__()
        self.num_heads, self.head_width = width // head_width, head_width
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(context_width, width, bias=False)
        self.v_proj = nn.Linear(context_width, width, bias=False)
        self.out_proj = nn.Linear(width, width)
        self.place_proj = nn.Linear(place_width, width, bias=False) if place_width else None
        self._begin_at_own_token(place_width)

    @torch.no_grad()
    def _begin_at_own_token(self, place_width: int) -> None:
        """Let every head of a fresh network compare the fastest waves of both codes: queries find their own token."""
        if self.place_proj is None:
            return
        channel = torch.arange(self.place_proj.out_features)
        match = torch.zeros_like(self.place_proj.weight)  # (C, place_width)
        match[channel, channel % min(self.head_width, place_width)] = OWN_TOKEN_GAIN
        self.place_proj.weight.copy_(match)
        self.k_proj.weight[:, -place_width:] = match

    def keys_values(self, context: Tensor) -> KeyValue:
        """What queries attend to, from (B, N, C')."""
        split = lambda x: rearrange(x, HEADS, h=self.num_heads)  # noqa: E731
        return split(self.k_proj(context)), split(self.v_proj(context))

    def forward(self, x: Tensor, context: KeyValue | None = None, places: Tensor | None = None) -> Tensor:
        """(B, P, C) -> (B, P, C); without `context` it attends to itself. `places` (P, place_width) are codes."""
        q = self.q_proj(x)
        if self.place_proj is not None and places is not None:
            q = q + self.place_proj(places)
        q = rearrange(q, HEADS, h=self.num_heads)
        k, v = self.keys_values(x) if context is None else context
        return self.out_proj(rearrange(attention(q, k, v), "b h n e -> b n (h e)"))  # type: ignore[no-any-return]


class GatedFeedForward(nn.Module):
    """GEGLU, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(width, 8 * width)
        self.down_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, P, C) -> (B, P, C)."""
        value, gate = self.up_proj(x).chunk(2, dim=-1)
        return self.down_proj(value * F.gelu(gate))  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    """Attention, attention (to itself or to the condition), feed-forward; each normed before and added."""

    def __init__(self, width: int, context_width: int | None, head_width: int, place_width: int = 0) -> None:
        super().__init__()
        self.crosses = context_width is not None
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attention1 = Attention(width, width, head_width)
        self.attention2 = Attention(width, context_width or width, head_width, place_width)
        self.feed_forward = GatedFeedForward(width)

    def forward(self, x: Tensor, context: Iterator[KeyValue], places: Tensor | None = None) -> Tensor:
        """(B, P, C) -> (B, P, C); takes its entry off `context` if it reads the condition."""
        x = x + self.attention1(self.norm1(x))
        x = x + self.attention2(self.norm2(x), next(context) if self.crosses else None, places)
        return x + self.feed_forward(self.norm3(x))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Transformer blocks over the positions of a feature map, time-major, between two 1x1 convolutions.

    Args:
        width: Channels (C).
        context_width: Channels of the condition; `None` makes the second attention of a block a self-attention, too.
        config: Depth, heads and norm.
    """

    def __init__(self, width: int, context_width: int | None, config: UNetConfig) -> None:
        super().__init__()
        self.norm = GroupNorm(config.norm_groups, width, eps=1e-6)
        self.proj_in = nn.Conv2d(width, width, 1)
        self.token_grid = config.token_grid if context_width else None
        places = config.place_width if self.token_grid else 0
        self.blocks = nn.ModuleList(
            TransformerBlock(width, context_width, config.head_width, places) for _ in range(config.transformer_depth)
        )
        self.proj_out = zeroed(nn.Conv2d(width, width, 1))
        if self.token_grid is not None:
            code = position_code(self.token_grid[0] * self.token_grid[1], places)
            self.register_buffer("token_code", code, persistent=False)
            self.token_code: Tensor

    def forward(self, x: Tensor, context: Iterator[KeyValue]) -> Tensor:
        """(B, C, T, F) -> (B, C, T, F)."""
        tokens = rearrange(self.proj_in(self.norm(x)), "b c t f -> b (t f) c")
        places = self.places(x.shape[2], x.shape[3])
        for block in self.blocks:
            tokens = block(tokens, context, places)
        return x + self.proj_out(rearrange(tokens, "b (t f) c -> b c t f", t=x.shape[2]))  # type: ignore[no-any-return]

    def places(self, frames: int, bins: int) -> Tensor | None:
        """Code of the token over each place of a map of `frames` x `bins`, (P, place_width); none without a grid."""
        if self.token_grid is None:
            return None
        rows, columns = self.token_grid
        device = self.token_code.device
        row = torch.arange(frames, device=device) * rows // frames
        column = torch.arange(bins, device=device) * columns // bins
        return self.token_code[(row[:, None] * columns + column).flatten()]


class Stage(nn.Module):
    """What stands between two skip connections: a residual block, maybe both transformers, maybe a change of size."""

    def __init__(self, width_in: int, width_out: int, config: UNetConfig, *, attends: bool, up: bool = False) -> None:
        super().__init__()
        self.res = ResBlock(width_in, width_out, config)
        self.self_attention = Transformer(width_out, None, config) if attends else None
        self.cross_attention = Transformer(width_out, config.context_width, config) if attends else None
        self.upsample = Upsample(width_out) if up else None

    def forward(self, x: Tensor, code: Tensor, context: Iterator[KeyValue], rows: int) -> Tensor:
        """(B, C, T, F) -> (B, C', T', F'); takes its entry of `rows` rows off `context` if it attends."""
        x = self.res(x, code)
        if self.self_attention is not None and self.cross_attention is not None:
            x = self.cross_attention(repeated(self.self_attention(x, context), rows), context)
        return x if self.upsample is None else self.upsample(x)  # type: ignore[no-any-return]


class Down(nn.Conv2d):
    """Half the size: a 3x3 convolution with stride 2."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, stride=2, padding=1)


class Middle(nn.Module):
    """The narrowest part: residual block, both transformers, residual block."""

    def __init__(self, width: int, config: UNetConfig) -> None:
        super().__init__()
        self.first = Stage(width, width, config, attends=True)
        self.last = ResBlock(width, width, config)

    def forward(self, x: Tensor, code: Tensor, context: Iterator[KeyValue], rows: int) -> Tensor:
        """(B, C, T, F) -> (rows, C, T, F)."""
        x = self.first(x, code, context, rows)
        return self.last(x, repeated(code, rows))  # type: ignore[no-any-return]


class UNet(nn.Module):
    """v of noisy latents.

    Args:
        config: Sizes.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.time_in = nn.Linear(config.width, 4 * config.width)
        self.time_out = nn.Linear(4 * config.width, 4 * config.width)
        self.inputs, widths = self._contracting(config)
        self.middle = Middle(widths[-1], config)
        self.outputs = self._expanding(config, widths)
        self.norm_out = GroupNorm(config.norm_groups, config.width, eps=1e-5)
        self.conv_out = zeroed(nn.Conv2d(config.width, config.latent_channels, 3, padding=1))

    @staticmethod
    def _contracting(config: UNetConfig) -> tuple[nn.ModuleList, list[int]]:
        """The way down and the width of every skip connection."""
        stages: list[nn.Module] = [nn.Conv2d(config.latent_channels, config.width, 3, padding=1)]
        widths = [config.width]
        for level, factor in enumerate(config.multipliers):
            for _ in range(config.res_blocks):
                attends = 2**level in config.attention_factors
                stages.append(Stage(widths[-1], factor * config.width, config, attends=attends))
                widths.append(factor * config.width)
            if level < len(config.multipliers) - 1:
                stages.append(Down(widths[-1]))
                widths.append(widths[-1])
        return nn.ModuleList(stages), widths

    @staticmethod
    def _expanding(config: UNetConfig, widths: Sequence[int]) -> nn.ModuleList:
        """The way up; every stage takes one skip connection."""
        stages, skips, width = [], list(widths), widths[-1]
        for level, factor in reversed(list(enumerate(config.multipliers))):
            for block in range(config.res_blocks + 1):
                attends = 2**level in config.attention_factors
                up = level > 0 and block == config.res_blocks
                stages.append(Stage(width + skips.pop(), factor * config.width, config, attends=attends, up=up))
                width = factor * config.width
        return nn.ModuleList(stages)

    def cross_attentions(self) -> Iterator[Attention]:
        """The attentions that read the condition, in the order in which they run."""
        for stage in [*self.inputs, self.middle.first, *self.outputs]:
            if isinstance(stage, Stage) and stage.cross_attention is not None:
                for block in stage.cross_attention.blocks:
                    assert isinstance(block, TransformerBlock)
                    yield block.attention2

    def read_context(self, condition: Tensor) -> Context:
        """Keys and values of a condition (B, N, context_width) for every cross-attention.

        The condition is the same at every timestep: compute this once per window and hand it to `forward` at all steps.
        """
        return [attention.keys_values(condition) for attention in self.cross_attentions()]

    def forward(self, x: Tensor, timesteps: Tensor, context: Context) -> Tensor:
        """Predict v.

        Args:
            x: Noisy latents, (B, latent_channels, T, F); T and F must be divisible by 2 per level change.
            timesteps: (B,) int64.
            context: From `read_context`, of B conditions or of several for each latent (B with, then B without, say):
                what the network does before it first reads a condition is then done once for all of them.

        Returns:
            (R, latent_channels, T, F), a row per condition, dtype of `x`.
        """
        code = timestep_code(timesteps, self.config.width).to(x.dtype)
        code = self.time_out(F.silu(self.time_in(code)))
        entries, skips, rows = iter(context), [], len(context[0][0]) if context else len(x)
        for stage in self.inputs:
            x = stage(x, repeated(code, len(x)), entries, rows) if isinstance(stage, Stage) else stage(x)
            skips.append(x)
        x = self.middle(x, repeated(code, len(x)), entries, rows)
        for stage in self.outputs:
            x = stage(torch.cat([x, repeated(skips.pop(), rows)], dim=1), repeated(code, rows), entries, rows)
        return self.conv_out(F.silu(self.norm_out(x)))  # type: ignore[no-any-return]
