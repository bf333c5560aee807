"""Methods that leave the encoder alone and drop tokens inside the language model.

Dims: B pictures, n tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mm.pruning.base import Pruned, Pruner
from mm.pruning.towers import PrunableTower, Stream


class LanguagePeer(Pruner):
    """`encode` passes every token on; the work is done by `language_stage`."""

    stage = "language"

    def prune(self, tower: PrunableTower, stream: Stream, targets: Sequence[int]) -> Pruned:
        """All tokens: these methods need the question, which the encoder does not know."""
        sizes = stream.keep.sum(dim=1) if stream.keep is not None else torch.full((len(stream.hidden),), stream.total)
        for layer in range(tower.num_blocks):
            stream, _ = tower.block(layer, stream)
        tokens, cls = tower.finish(stream)
        keep, index = stream.keep, stream.index
        kept = torch.full(index.shape, tower.num_blocks, device=index.device)
        return Pruned(
            tokens=tokens,
            keep_indices=index if keep is None else index.masked_fill(~keep, -1),
            tokens_per_layer=sizes.to(index.device)[:, None].repeat(1, tower.num_blocks + 1),
            scores=torch.zeros(index.shape, device=index.device),
            last_block=kept if keep is None else kept.masked_fill(~keep, -1),
            keep=keep,
            cls=cls,
        )


def scaled_blocks(published: Sequence[int], depth: int, published_depth: int = 32) -> list[int]:
    """Positions of cuts in a language model of another depth: in proportion, at least 1 apart.

    Example:
        >>> scaled_blocks((8, 16, 24), depth=32), scaled_blocks((2, 6, 16), depth=5)
        ([8, 16, 24], [1, 2, 3])
    """
    blocks: list[int] = []
    for block in published:
        floor = blocks[-1] + 1 if blocks else 1
        blocks.append(max(floor, round(block * depth / published_depth)))
    return blocks


def geometric_counts(size: int, target: int, cuts: int) -> list[int]:
    """Tokens after each cut when every cut keeps the same share.

    Example:
        >>> geometric_counts(576, 72, cuts=3)
        [288, 144, 72]
    """
    if size <= target:
        return [size] * cuts
    return [round(size * (target / size) ** (number / cuts)) for number in range(1, cuts)] + [target]


def average_per_block(size: int, counts: Sequence[int], before: Sequence[int], depth: int) -> float:
    """Visual tokens of a picture that a block sees on average: the budget that language-side methods publish.

    Args:
        size: Tokens of the unpruned picture.
        counts: Tokens after each cut.
        before: First block behind each cut.
        depth: Blocks of the language model.

    Example:
        >>> average_per_block(576, (66, 30, 17), (2, 6, 16), depth=32)
        62.125
    """
    starts, levels = [0, *before], [size, *counts]
    ends = [*before, depth]
    return sum((end - start) * level for start, end, level in zip(starts, ends, levels, strict=True)) / depth
