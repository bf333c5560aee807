"""Methods that let the encoder run in full and choose among its output tokens.

Dims: B pictures, n tokens of one picture, T kept, D width, H heads, d head channels, P prefix tokens, u patches per
unit.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mm.pruning.base import Pruned, Pruner
from mm.pruning.ragged import pad_rows
from mm.pruning.scores import Heads
from mm.pruning.towers import PrunableTower, Stream


@dataclass(frozen=True)
class Seen:
    """One picture behind the encoder."""

    tokens: Tensor
    """Features, (n, D)."""
    cls: Tensor | None
    """Class token, (D,), or None."""
    heads: Heads
    """Of the last block that ran; every tensor (1, H, P + n u, d), padding removed."""
    next_heads: Heads | None
    """Of the block behind the features, fed with them; None when there is none or the method does not ask."""
    prefix: int
    """Prefix tokens (P)."""
    unit: int
    """Patches per token (u)."""
    number: int
    """Row in the batch."""
    total: int
    """Tokens of the widest picture of the batch."""

    def per_token(self, patches: Tensor) -> Tensor:
        """Mean over the patches of each token: (n u, ...) -> (n, ...)."""
        return patches.unflatten(0, (-1, self.unit)).mean(dim=1)


@dataclass(frozen=True)
class Choice:
    """What a method makes of one picture."""

    tokens: Tensor
    """(T, D)."""
    index: Tensor
    """Raster number of each token, (T,) int64; -1 without a place."""
    scores: Tensor
    """(n,) float32."""


class WholeEncoderPruner(Pruner):
    """Runs all blocks, then `choose` for every picture."""

    stage = "encoder"
    needs_next_block: bool = False
    """Whether `choose` reads `Seen.next_heads`."""

    @abstractmethod
    def choose(self, seen: Seen, target: int) -> Choice:
        """Tokens of one picture that has more than `target` of them."""

    def covers_all(self, size: int, target: int) -> bool:
        """Whether a picture of `size` tokens is passed on as it is."""
        return size <= target

    def prune(self, tower: PrunableTower, stream: Stream, targets: Sequence[int]) -> Pruned:
        heads: Heads | None = None
        for layer in range(tower.num_blocks):
            stream, heads = tower.block(layer, stream)
        if heads is None:
            raise ValueError("the features are the encoder's input: no block runs, so there is nothing to rate by")
        following = None
        if self.needs_next_block and tower.num_blocks < len(tower.blocks):
            following = tower.heads(tower.num_blocks, stream)
        tokens, cls = tower.finish(stream)
        seen = [_row(number, stream, tokens, cls, heads, following) for number in range(len(tokens))]
        choices = [self._choose(picture, target) for picture, target in zip(seen, targets, strict=True)]
        return _collect(choices, seen, tower.num_blocks)

    def _choose(self, seen: Seen, target: int) -> Choice:
        if self.covers_all(len(seen.tokens), target):
            index = torch.arange(len(seen.tokens), device=seen.tokens.device)
            return Choice(seen.tokens, index, torch.zeros(len(index), device=index.device))
        return self.choose(seen, target)


def _row(
    number: int, stream: Stream, tokens: Tensor, cls: Tensor | None, heads: Heads, following: Heads | None
) -> Seen:
    """One picture without its padding."""
    keep, visible = stream.keep, stream.token_keep

    def alone(part: Heads | None) -> Heads | None:
        if part is None:
            return None
        query, key, value = (tensor[number : number + 1] for tensor in (part.query, part.key, part.value))
        if visible is not None:
            query, key, value = (tensor[:, :, visible[number]] for tensor in (query, key, value))
        return Heads(query, key, value, part.scale)

    mine = alone(heads)
    assert mine is not None
    return Seen(
        tokens=tokens[number] if keep is None else tokens[number, keep[number]],
        cls=None if cls is None else cls[number],
        heads=mine,
        next_heads=alone(following),
        prefix=stream.prefix,
        unit=stream.unit,
        number=number,
        total=stream.total,
    )


def _collect(choices: list[Choice], seen: list[Seen], blocks: int) -> Pruned:
    tokens, keep = pad_rows([choice.tokens for choice in choices])
    index, _ = pad_rows([choice.index for choice in choices], value=-1)
    total = max(picture.total for picture in seen)
    scores, _ = pad_rows([choice.scores for choice in choices])
    last_block = torch.full((len(choices), total), -1, device=index.device)
    for row, (choice, picture) in enumerate(zip(choices, seen, strict=True)):
        last_block[row, : len(picture.tokens)] = blocks - 1
        last_block[row, choice.index[choice.index >= 0]] = blocks
    sizes = torch.tensor([len(picture.tokens) for picture in seen], device=index.device)
    entered = sizes[:, None].repeat(1, blocks + 1)
    entered[:, blocks] = torch.tensor([len(choice.tokens) for choice in choices], device=index.device)
    return Pruned(
        tokens=tokens,
        keep_indices=index,
        tokens_per_layer=entered,
        scores=scores,
        last_block=last_block,
        keep=keep,
        cls=None if seen[0].cls is None else torch.stack([picture.cls for picture in seen if picture.cls is not None]),
    )


def top(scores: Tensor, count: int) -> Tensor:
    """Numbers of the best scores, ascending; equal scores: the lower number wins. (n,) -> (count,)."""
    return scores.sort(descending=True, stable=True).indices[:count].sort().values
