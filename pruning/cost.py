"""What a call of a pruned model cost, from the tokens that each block really saw.

Multiply-accumulates of the linear layers come from the weights of the blocks themselves, attention is counted in full:
2 n W + 4 n^2 D FLOPs for a block with W weights, n tokens and attention width D. Embeddings, norms and heads are left
out on both sides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mm.pruning.towers import open_tower

if TYPE_CHECKING:
    from mm.pruning.attach import Attached
    from mm.pruning.base import Pruned
    from mm.pruning.hosts import Host


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One prompt's pass."""

    encoder_flops: int
    """Of the vision encoder."""
    language_flops: int
    """Of the language model's blocks."""
    visual_tokens: int
    """Visual tokens that enter the language model."""
    average_visual_tokens: float
    """Visual tokens that a block of the language model sees on average."""

    @property
    def total_flops(self) -> int:
        """Both together."""
        return self.encoder_flops + self.language_flops


def block_flops(block: nn.Module, tokens: int, width: int) -> int:
    """FLOPs of one transformer block."""
    weights = sum(parameter.numel() for parameter in block.parameters() if parameter.ndim == 2)
    return 2 * weights * tokens + 4 * width * tokens**2


def call_cost(session: Attached, inputs: Mapping[str, Any]) -> Cost:
    """Cost of the last call with pictures inside an `attach` block.

    Args:
        session: What `attach` gave.
        inputs: The unpruned arguments of that call: one prompt without padding, and its pictures.
    """
    return _cost(session.host, inputs, session.pruned, session.visual_tokens, _seen_by_blocks(session))


def plain_cost(host: Host, inputs: Mapping[str, Any]) -> Cost:
    """Cost of the same call without a pruner."""
    return _cost(host, inputs, [], [], [])


def _seen_by_blocks(session: Attached) -> list[int]:
    return [] if session.language is None else session.language.visual_per_block()


def _cost(
    host: Host,
    inputs: Mapping[str, Any],
    pruned: Sequence[Pruned],
    pictures: Sequence[tuple[int, int]],
    per_block: Sequence[int],
) -> Cost:
    ids = inputs["input_ids"]
    visual = int((ids == host.image_token).sum())
    entering = sum(left for _, left in pictures) if pictures else visual
    per_block = list(per_block) or [entering] * len(host.blocks)
    return Cost(
        encoder_flops=encoder_cost(host, inputs, pruned),
        language_flops=language_cost(host.blocks, [count + ids.numel() - visual for count in per_block]),
        visual_tokens=entering,
        average_visual_tokens=sum(per_block) / len(per_block),
    )


def language_cost(blocks: nn.ModuleList, tokens: Sequence[int]) -> int:
    """FLOPs of decoder blocks that see different numbers of tokens (one prompt)."""
    total = 0
    for block, count in zip(blocks, tokens, strict=True):
        projection = getattr(getattr(block, "self_attn", None), "q_proj", None)
        total += block_flops(block, count, projection.out_features if projection is not None else norm_width(block))
    return total


@torch.no_grad()
def encoder_cost(host: Host, inputs: Mapping[str, Any], pruned: Sequence[Pruned]) -> int:
    """FLOPs of the encoder, from the tokens of each of its blocks; all tokens in all blocks if nothing was pruned."""
    tower = open_tower(host.tower, getattr(host, "layer", None))
    if pruned:
        rows = [row for result in pruned for row in result.tokens_per_layer.tolist()]
    else:
        grid = inputs.get("image_grid_thw")
        pixels = inputs["pixel_values"]
        pixels = pixels.flatten(0, 1) if pixels.ndim == 5 else pixels
        stream = tower.start(pixels, **({} if grid is None else {"image_grid_thw": grid}))
        sizes = [stream.total] * len(stream.hidden) if stream.keep is None else stream.keep.sum(dim=1).tolist()
        rows = [[size] * (tower.num_blocks + 1) for size in sizes]
    total = 0
    for row in rows:
        for block, count in zip(tower.blocks, row[:-1], strict=False):  # blocks behind the features do not run
            total += block_flops(block, tower.num_prefix + tower.unit * count, norm_width(block))
    return total


def norm_width(block: nn.Module) -> int:
    """Width of a block's attention: that of its first norm."""
    for module in block.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 1:
            return len(weight)
    return 0
