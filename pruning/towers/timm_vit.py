"""Plain vision transformers of timm (ViT, CLIP, SigLIP, DINOv2 with or without registers)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mm.pruning.scores import Heads
from mm.pruning.towers.base import PrunableTower, Stream, full_stream, join_heads

_BLOCK_PARTS = ("norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2")
_ATTENTION_PARTS = ("qkv", "q_norm", "k_norm", "norm", "proj", "num_heads", "scale")


class TimmTower(PrunableTower):
    """A timm `VisionTransformer`.

    Raises:
        ValueError: its blocks are of another kind (parallel, post-norm, rotary).
    """

    def __init__(self, module: Any, num_blocks: int, final_norm: bool = False) -> None:
        super().__init__(module, num_blocks, final_norm)
        block = module.blocks[0]
        missing = [name for name in _BLOCK_PARTS if not hasattr(block, name)]
        missing += [f"attn.{name}" for name in _ATTENTION_PARTS if not hasattr(getattr(block, "attn", None), name)]
        if missing:
            raise ValueError(
                f"{type(block).__name__} blocks cannot be pruned yet: they lack {', '.join(missing)}; "
                "use a plain timm VisionTransformer"
            )
        self.has_cls = module.cls_token is not None
        self.num_prefix = int(module.num_prefix_tokens)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.module.blocks

    def start(self, pixel_values: Tensor, **inputs: Any) -> Stream:
        module = self.module
        hidden = module.patch_embed(pixel_values.to(module.patch_embed.proj.weight.dtype))
        hidden = module.norm_pre(module.patch_drop(module._pos_embed(hidden)))
        return full_stream(hidden, self.num_prefix)

    def heads(self, layer: int, stream: Stream) -> Heads:
        block: Any = self.blocks[layer]
        attention = block.attn
        projected = attention.qkv(block.norm1(stream.hidden))
        batch, length, _ = projected.shape
        split = projected.reshape(batch, length, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)  # (3, B, H, n, d)
        query, key, value = split.unbind(0)
        return Heads(attention.q_norm(query), attention.k_norm(key), value, attention.scale)

    def finish_block(self, layer: int, stream: Stream, mixed: Tensor) -> Tensor:
        block: Any = self.blocks[layer]
        attention = block.attn
        joined = attention.norm(join_heads(mixed))
        if getattr(attention, "gate", None) is not None:
            joined = joined * attention.gate(block.norm1(stream.hidden)).sigmoid()
        hidden = stream.hidden + block.drop_path1(block.ls1(attention.proj_drop(attention.proj(joined))))
        return hidden + block.drop_path2(block.ls2(block.mlp(block.norm2(hidden))))

    def norm(self, hidden: Tensor) -> Tensor:
        return self.module.norm(hidden)
