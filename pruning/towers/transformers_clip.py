"""CLIP and SigLIP vision models of Hugging Face transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mm.pruning.scores import Heads
from mm.pruning.towers.base import PrunableTower, Stream, full_stream, join_heads, split_heads

MODEL_TYPES = ("clip_vision_model", "siglip_vision_model")


class TransformersTower(PrunableTower):
    """A `CLIPVisionModel` or `SiglipVisionModel`."""

    def __init__(self, module: Any, num_blocks: int, final_norm: bool = False) -> None:
        super().__init__(module, num_blocks, final_norm)
        self.has_cls = module.config.model_type == "clip_vision_model"
        self.num_prefix = int(self.has_cls)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.module.encoder.layers

    def start(self, pixel_values: Tensor, **inputs: Any) -> Stream:
        dtype = self.module.embeddings.patch_embedding.weight.dtype
        hidden = self.module.embeddings(pixel_values.to(dtype), **inputs)
        if self.has_cls:
            hidden = self.module.pre_layrnorm(hidden)
        return full_stream(hidden, self.num_prefix)

    def heads(self, layer: int, stream: Stream) -> Heads:
        block: Any = self.blocks[layer]
        attention, normed = block.self_attn, block.layer_norm1(stream.hidden)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        query, key, value = (split_heads(project(normed), attention.num_heads) for project in projections)
        return Heads(query, key, value, attention.scale)

    def finish_block(self, layer: int, stream: Stream, mixed: Tensor) -> Tensor:
        block: Any = self.blocks[layer]
        hidden = stream.hidden + block.self_attn.out_proj(join_heads(mixed))
        return hidden + block.mlp(block.layer_norm2(hidden))

    def norm(self, hidden: Tensor) -> Tensor:
        return self.module.post_layernorm(hidden)
