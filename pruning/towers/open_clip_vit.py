"""Vision transformers of open_clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from mm.pruning.scores import Heads
from mm.pruning.towers.base import PrunableTower, Stream, full_stream, join_heads


class OpenClipTower(PrunableTower):
    """An open_clip `VisionTransformer` with its standard blocks.

    Raises:
        ValueError: its blocks keep attention elsewhere than in one `nn.MultiheadAttention`.
    """

    def __init__(self, module: Any, num_blocks: int, final_norm: bool = False) -> None:
        super().__init__(module, num_blocks, final_norm)
        if not isinstance(getattr(self.blocks[0], "attn", None), nn.MultiheadAttention):
            raise ValueError(f"{type(self.blocks[0]).__name__} blocks cannot be pruned yet: no nn.MultiheadAttention")

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.module.transformer.resblocks

    def start(self, pixel_values: Tensor, **inputs: Any) -> Stream:
        hidden = self.module._embeds(pixel_values.to(self.module.conv1.weight.dtype))
        return full_stream(hidden, self.num_prefix)

    def heads(self, layer: int, stream: Stream) -> Heads:
        block: Any = self.blocks[layer]
        attention = block.attn
        projected = F.linear(block.ln_1(stream.hidden), attention.in_proj_weight, attention.in_proj_bias)
        query, key, value = rearrange(projected, "b n (three h d) -> three b h n d", three=3, h=attention.num_heads)
        return Heads(query, key, value, attention.head_dim**-0.5)

    def finish_block(self, layer: int, stream: Stream, mixed: Tensor) -> Tensor:
        block: Any = self.blocks[layer]
        hidden = stream.hidden + block.ls_1(block.attn.out_proj(join_heads(mixed)))
        return hidden + block.ls_2(block.mlp(block.ln_2(hidden)))

    def norm(self, hidden: Tensor) -> Tensor:
        return self.module.ln_post(hidden)
