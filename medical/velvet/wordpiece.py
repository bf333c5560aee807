"""Learn word pieces from local text: merges of the most frequent neighbours, the same result on every run.

Words are split into characters, all but the first with the prefix "##"; the pair of neighbours that occurs most often
becomes one piece, until the vocabulary is full (Schuster & Nakajima 2012; merge order as in Sennrich et al. 2016,
arXiv:1508.07909). Ties go to the pair that sorts first.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import pairwise

CONTINUATION = "##"

Pair = tuple[str, str]


def learn_pieces(words: Mapping[str, int], size: int) -> list[str]:
    """Pieces of a word count.

    Args:
        words: Word -> how often it occurs.
        size: Most pieces; single characters are always among them.

    Returns:
        Characters in sorted order, then merged pieces in the order they were found.

    Example:
        >>> learn_pieces({"cyst": 5, "cysts": 3}, size=9)
        ['##s', '##t', '##y', 'c', '##st', '##yst', 'cyst', 'cysts']
    """
    spelled = {word: [word[0], *(CONTINUATION + letter for letter in word[1:])] for word in sorted(words)}
    pieces = sorted({piece for parts in spelled.values() for piece in parts})
    counts: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[str]] = defaultdict(set)
    for word, parts in spelled.items():
        _count(counts, where, word, parts, words[word])
    known = set(pieces)
    while len(pieces) < size:
        best = min(((-count, pair) for pair, count in counts.items() if count > 1), default=None)
        if best is None:
            break
        first, second = best[1]
        merged = first + second.removeprefix(CONTINUATION)
        for word in sorted(where[first, second]):
            parts = spelled[word]
            _count(counts, where, word, parts, -words[word])
            spelled[word] = _merge(parts, first, second, merged)
            _count(counts, where, word, spelled[word], words[word])
        counts.pop((first, second), None)
        if merged not in known:
            known.add(merged)
            pieces.append(merged)
    return pieces


def _count(counts: Counter[Pair], where: defaultdict[Pair, set[str]], word: str, parts: list[str], times: int) -> None:
    """Add (or with negative `times` remove) the neighbours of one word."""
    for pair in pairwise(parts):
        counts[pair] += times
        if times > 0:
            where[pair].add(word)
        else:
            where[pair].discard(word)


def _merge(parts: list[str], first: str, second: str, merged: str) -> list[str]:
    """Replace every neighbourhood of `first` and `second`, from the left."""
    found: list[str] = []
    for part in parts:
        if found and found[-1] == first and part == second:
            found[-1] = merged
        else:
            found.append(part)
    return found
