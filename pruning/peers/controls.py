"""The two controls that every pruning method must beat: random tokens and an even grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mm.pruning.base import check_target
from mm.pruning.peers.whole_encoder import Choice, Seen, WholeEncoderPruner


@dataclass(frozen=True, kw_only=True)
class RandomPrune(WholeEncoderPruner):
    """Keep random tokens: a new draw for every picture of a batch, the same for the same seed."""

    target_tokens: int = 128
    """Tokens to keep per picture."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        check_target(self.target_tokens)

    def choose(self, seen: Seen, target: int) -> Choice:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + seen.number)
        scores = torch.rand(len(seen.tokens), generator=generator).to(seen.tokens.device)
        index = scores.topk(target).indices.sort().values
        return Choice(seen.tokens[index], index, scores)


@dataclass(frozen=True, kw_only=True)
class UniformGrid(WholeEncoderPruner):
    """Keep tokens on an even grid, whatever the picture shows.

    The grid assumes a square picture where the number of tokens is a square, else one long row.
    """

    target_tokens: int = 128
    """Tokens to keep per picture."""

    def __post_init__(self) -> None:
        check_target(self.target_tokens)

    def choose(self, seen: Seen, target: int) -> Choice:
        size = len(seen.tokens)
        side = round(size**0.5)
        height, width = (side, side) if side * side == size else (1, size)
        index = grid_numbers(height, width, target).to(seen.tokens.device)
        scores = torch.zeros(size, device=index.device).index_fill(0, index, 1.0)
        return Choice(seen.tokens[index], index, scores)


def grid_numbers(height: int, width: int, count: int) -> Tensor:
    """Exactly `count` raster numbers, spread evenly over a height x width grid.

    Rows are chosen evenly; each takes an even share of the columns, the leftovers go to rows spread evenly as well.

    Example:
        >>> grid_numbers(4, 4, 4).tolist()
        [5, 7, 13, 15]
    """
    rows = min(height, max(1, round((count * height / width) ** 0.5), -(-count // width)))
    numbers = []
    for row in range(rows):
        share = count * (row + 1) // rows - count * row // rows
        y = (2 * row + 1) * height // (2 * rows)
        numbers += [y * width + (2 * column + 1) * width // (2 * share) for column in range(share)]
    return torch.tensor(numbers)
