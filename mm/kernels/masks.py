"""Attention masks whose structure is known: what they allow, and the rectangles and triangles they consist of.

A mask says the same thing twice. `rule` answers "may query i see key j" for any pair (what FlexAttention and a dense
matrix are made from); `parts` lists full rectangles and causal triangles that cover exactly the allowed pairs, so that
plain flash attention computes each part and nothing else. Parts of one kind (begin or merge, causal or not) never share
a query or a key. Lengths are Python integers: nothing is read from a device.
Dims: B batch, N queries, M keys; with N < M the queries are the last N tokens (a cache holds the others).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(batch, head, query, key) index tensors -> bool, True = attend; the form FlexAttention calls mask_mod."""
Lengths = int | tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """Queries [q0, q1) against keys [k0, k1) in batch rows [b0, b1): all pairs, or a triangle (q1 - q0 = k1 - k0)."""

    merge: bool
    """Whether an earlier part already gave these queries an output, to be merged with this one."""
    q0: int
    q1: int
    k0: int
    k1: int
    causal: bool
    b0: int = 0
    b1: int = 0


@dataclass(frozen=True)
class Causal:
    """Each token sees itself and the past; the last query is aligned with the last key."""

    def rule(self, num_queries: int, num_keys: int, device: torch.device) -> Rule:
        """See the module docstring."""
        back = num_keys - num_queries
        return lambda b, h, q, k: k <= q + back

    def parts(self, batch: int, num_queries: int, num_keys: int) -> list[Part]:
        """See the module docstring."""
        _need(num_queries <= num_keys, f"causal attention needs keys for all {num_queries} queries, found {num_keys}")
        return _merge_rows([_after_cache(num_queries, num_keys)] * batch)


@dataclass(frozen=True)
class Packed:
    """Several sequences side by side in one row; none sees another.

    Example:
        >>> len(Packed((3, 5)).parts(batch=4, num_queries=8, num_keys=8))
        2
    """

    lengths: tuple[int, ...] | tuple[tuple[int, ...], ...]
    """Length of each sequence; one tuple per batch row if rows differ. What is left of a row is padding."""
    causal: bool = True
    """Whether a token sees only itself and the past of its own sequence."""

    def rule(self, num_queries: int, num_keys: int, device: torch.device) -> Rule:
        """See the module docstring."""
        owner = torch.tensor([_owners(spans, num_keys) for spans in _rows(self.lengths)], device=device)
        several = len(owner) > 1

        def allowed(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            row = b if several else b * 0
            same = (owner[row, q] == owner[row, k]) & (owner[row, q] >= 0)
            return same & (k <= q) if self.causal else same

        return allowed

    def parts(self, batch: int, num_queries: int, num_keys: int) -> list[Part]:
        """See the module docstring."""
        _need(num_queries == num_keys, f"packed attention needs as many queries as keys, got {num_queries}, {num_keys}")
        rows = []
        for spans in _each_row(_rows(self.lengths), batch):
            _need(sum(spans) <= num_keys, f"packed sequences of {sum(spans)} tokens do not fit a row of {num_keys}")
            ends = list(accumulate(spans))
            rows.append([Part(False, e - n, e, e - n, e, self.causal) for n, e in zip(spans, ends, strict=True) if n])
        return _merge_rows(rows)


@dataclass(frozen=True)
class Facets:
    """A causal prefix, then facets that each see the prefix and their own past, never one another.

    Many prompts on one caption (FLAME, Cao et al. 2024, arXiv:2411.11927) or many questions on one image share the
    prefix: allowed(i, j) = j <= i and (facet(j) = 0 or facet(j) = facet(i)). Positions are not part of the mask.

    Example:
        >>> mask = Facets(prefix=(5, 3), facets=((2, 2), (4,)))  # two rows with 2 and 1 facets
        >>> sorted({part.causal for part in mask.parts(batch=2, num_queries=9, num_keys=9)})
        [False, True]
    """

    prefix: Lengths
    """Tokens of the shared prefix, one number or one per batch row."""
    facets: tuple[int, ...] | tuple[tuple[int, ...], ...]
    """Tokens of each facet; one tuple per batch row if rows differ in number or length."""
    padding_side: Literal["right", "left"] = "right"
    """Where rows shorter than the batch are filled up. With "left" equal facets of all rows run as one call."""

    def _layout(self, batch: int) -> list[tuple[int, tuple[int, ...]]]:
        prefixes = _each_row((self.prefix,) if isinstance(self.prefix, int) else self.prefix, batch)
        return list(zip(prefixes, _each_row(_rows(self.facets), batch), strict=True))

    def _start(self, prefix: int, facets: tuple[int, ...], length: int) -> int:
        used = prefix + sum(facets)
        _need(used <= length, f"a prefix of {prefix} and facets of {sum(facets)} tokens do not fit a row of {length}")
        return length - used if self.padding_side == "left" else 0

    def rule(self, num_queries: int, num_keys: int, device: torch.device) -> Rule:
        """See the module docstring."""
        several = [x for x in (self.prefix, *self.facets) if isinstance(x, tuple)]
        layout = self._layout(max(map(len, (_rows(self.facets), several[0] if several else ()))))
        owner = []
        for prefix, facets in layout:
            start = self._start(prefix, facets, num_keys)
            ids = [-1] * start + [0] * prefix + [i for i, n in enumerate(facets, 1) for _ in range(n)]
            owner.append(ids + [-1] * (num_keys - len(ids)))
        table = torch.tensor(owner, device=device)

        def allowed(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            row = b if len(table) > 1 else b * 0
            asks, key = table[row, q], table[row, k]
            return (k <= q) & (asks >= 0) & (key >= 0) & ((key == 0) | (key == asks))

        return allowed

    def parts(self, batch: int, num_queries: int, num_keys: int) -> list[Part]:
        """See the module docstring."""
        _need(num_queries == num_keys, f"facets need as many queries as keys, got {num_queries} and {num_keys}")
        rows = []
        for prefix, facets in self._layout(batch):
            start = self._start(prefix, facets, num_keys)
            fork, end = start + prefix, start + prefix + sum(facets)
            row = [Part(False, start, fork, start, fork, True)] if prefix else []
            if prefix and end > fork:
                row.append(Part(False, fork, end, start, fork, False))
            for n, stop in zip(facets, accumulate(facets, initial=fork), strict=False):
                if n:
                    row.append(Part(prefix > 0, stop, stop + n, stop, stop + n, True))
            rows.append(row)
        return _merge_rows(rows)


@dataclass(frozen=True)
class VisualPrefix:
    """Visual tokens see all visual tokens, text sees all visual tokens and its own past (a prefix language model).

    The queries may be all tokens, or only the text: then the visual tokens are given as keys alone and no row of theirs
    is computed (cross attention to visual keys and causal self-attention in one softmax).
    """

    visual: Lengths
    """Visual tokens at the start of the keys, one number or one per batch row."""

    def rule(self, num_queries: int, num_keys: int, device: torch.device) -> Rule:
        """See the module docstring."""
        visual = torch.tensor([self.visual] if isinstance(self.visual, int) else self.visual, device=device)
        back = num_keys - num_queries
        return lambda b, h, q, k: (k <= q + back) | (k < visual[b if len(visual) > 1 else b * 0])

    def parts(self, batch: int, num_queries: int, num_keys: int) -> list[Part]:
        """See the module docstring."""
        rows = []
        back = num_keys - num_queries
        for visual in _each_row((self.visual,) if isinstance(self.visual, int) else self.visual, batch):
            _need(0 <= visual <= num_keys, f"{visual} visual tokens do not fit {num_keys} keys")
            _need(back >= 0, f"{num_queries} queries need at least as many keys, found {num_keys}")
            seen = max(visual, back)  # every query sees these keys: the visual ones, and text before the queries
            row = [Part(False, 0, num_queries, 0, seen, False)] if seen else []
            if num_keys > seen:
                row.append(Part(seen > 0, seen - back, num_queries, seen, num_keys, True))
            rows.append(row)
        return _merge_rows(rows)


Structure = Causal | Packed | Facets | VisualPrefix


def dense_mask(mask: Structure, batch: int, num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    """The mask as a matrix, (B, 1, N, M) bool: what the structured paths never build."""
    b, h, q, k = (
        torch.arange(size, device=device).view([-1 if i == axis else 1 for i in range(4)])
        for axis, size in enumerate((batch, 1, num_queries, num_keys))
    )
    return mask.rule(num_queries, num_keys, device)(b, h, q, k).expand(batch, 1, num_queries, num_keys)


def _after_cache(num_queries: int, num_keys: int) -> list[Part]:
    """The last `num_queries` of `num_keys` causal tokens: a rectangle over the others and a triangle."""
    past = num_keys - num_queries
    if not num_queries:
        return []
    rectangle = [Part(False, 0, num_queries, 0, past, False)] if past else []
    return [*rectangle, Part(past > 0, 0, num_queries, past, num_keys, True)]


def _merge_rows(rows: list[list[Part]]) -> list[Part]:
    """One list for the batch: neighbouring rows that need the same part share one call."""
    parts: dict[Part, list[list[int]]] = {}
    for number, row in enumerate(rows):
        for part in row:
            runs = parts.setdefault(part, [])
            if runs and runs[-1][1] == number:
                runs[-1][1] = number + 1
            else:
                runs.append([number, number + 1])
    flat = [replace(part, b0=b0, b1=b1) for part, runs in parts.items() for b0, b1 in runs]
    # parts that begin an output come before those that are merged into it
    return [part for part in flat if not part.merge] + [part for part in flat if part.merge]


def _rows(lengths: tuple[int, ...] | tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """Lengths per batch row; a single row stands for all."""
    return lengths if lengths and isinstance(lengths[0], tuple) else (lengths,)  # type: ignore[return-value]


def _each_row(values: tuple, batch: int) -> tuple:
    _need(len(values) in (1, batch), f"the mask describes {len(values)} rows, the batch has {batch}")
    return values * batch if len(values) == 1 else values


def _owners(spans: tuple[int, ...], length: int) -> list[int]:
    """Number of the sequence that each token belongs to; -1 for padding."""
    ids = [number for number, n in enumerate(spans) for _ in range(n)]
    return ids + [-1] * (length - len(ids))


def _need(fits: bool, message: str) -> None:
    if not fits:
        raise ValueError(message)
