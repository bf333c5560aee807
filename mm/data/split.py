"""Seeds decide everything: training, validation and test are ranges of seeds that never meet.

A generator is a pure function of one integer; the split is part of that integer, so a training picture can't be drawn
with a test seed by passing the wrong flag. Each use of a seed names its stream, hence the boards and the scenes of
one seed are independent of each other.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

SplitName = Literal["train", "validation", "test"]
SEEDS_PER_SPLIT = 2**40
"""More samples than any run will draw: a thousand samples a second for thirty years."""


@dataclass(frozen=True)
class Split:
    """A range of seeds.

    Example:
        >>> Split("train").seed(5), Split("test").seed(5) == Split("train").seed(5)
        (5, False)
    """

    name: SplitName

    def __post_init__(self) -> None:
        if self.name not in get_args(SplitName):
            raise ValueError(f"unknown split {self.name!r}; allowed: {', '.join(get_args(SplitName))}")

    @property
    def seeds(self) -> range:
        """All seeds of this split."""
        start = get_args(SplitName).index(self.name) * SEEDS_PER_SPLIT
        return range(start, start + SEEDS_PER_SPLIT)

    def seed(self, index: int) -> int:
        """Seed of the sample number `index`, counted from 0.

        Raises:
            ValueError: `index` is negative or beyond the range.
        """
        if not 0 <= index < SEEDS_PER_SPLIT:
            raise ValueError(f"sample number must be in 0..{SEEDS_PER_SPLIT - 1}, got {index}")
        return self.seeds[index]


def split_of(seed: int) -> SplitName:
    """The split that a seed belongs to.

    Raises:
        ValueError: the seed is outside all ranges.
    """
    number = int(seed) // SEEDS_PER_SPLIT
    names = get_args(SplitName)
    if not 0 <= number < len(names):
        raise ValueError(f"seed must be in 0..{len(names) * SEEDS_PER_SPLIT - 1}, got {seed}")
    return names[number]


Seed = int | np.random.Generator
"""An integer, or the generator of a larger thing (a document, say) that this one is a part of."""


def generator(seed: Seed, stream: str) -> np.random.Generator:
    """The random numbers of one seed for one purpose; different streams of a seed are independent.

    A generator is handed back as it is, so that a part can go on drawing from its whole.
    """
    if isinstance(seed, np.random.Generator):
        return seed
    split_of(seed)
    return np.random.default_rng([zlib.crc32(stream.encode()), int(seed)])


def balanced(seed: Seed, choices: int, stream: str) -> int:
    """A choice in 0..choices-1 that occurs equally often in every aligned run of `choices` seeds.

    Seeds k*choices .. (k+1)*choices-1 get a random permutation, so a data set of left/right questions has exactly as
    many of each, which a coin per seed would not guarantee. A generator gives such a coin.
    """
    if isinstance(seed, np.random.Generator):
        return int(seed.integers(choices))
    block, place = divmod(int(seed), choices)
    return int(generator(block, f"balanced {choices} {stream}").permutation(choices)[place])
