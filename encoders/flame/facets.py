"""Which token belongs to which facet, who may see whom, and where a facet is read out.

All facets of a caption run in one pass: every token sees the shared prefix and the past of its own facet, never another
facet. Facet ids say it all; mask, positions and slots are functions of them.
Dims: B captions, N tokens (padded), K facets.
Source: FLAME (Cao et al. 2024, arXiv:2411.11927), facet-decoupled attention mask.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mm.encoders.flame.templates import FacetText

PADDING = -1
PREFIX = 0
Positions = Literal["consecutive", "reset"]
Compat = Literal["none", "official", "causal_pad"]


@dataclass(frozen=True)
class FacetRow:
    """One caption in its template, tokenised."""

    input_ids: list[int]
    """Token ids without padding."""
    facet_ids: list[int]
    """For each token: 0 for the shared prefix, k for facet k; never decreasing."""


@dataclass(frozen=True)
class FacetBatch:
    """Captions side by side; rows may differ in every length."""

    input_ids: Tensor
    """(B, N) int64."""
    facet_ids: Tensor
    """(B, N) int64: -1 padding, 0 shared prefix, k = 1..K facet k."""


def tokenize(texts: Sequence[FacetText], tokenizer: Any) -> list[FacetRow]:
    """Tokenise rendered templates and tell by character offsets which facet each token begins in.

    Tokens behind the last facet (an end token that the tokenizer adds) are dropped: slots are last tokens.

    Raises:
        ValueError: the tokenizer gives no offsets, or a facet got no token of its own.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} gives no character offsets; facets need a fast tokenizer "
            "(a folder with tokenizer.json, transformers.PreTrainedTokenizerFast)"
        )
    if not texts:
        return []
    encoded = tokenizer([text.text for text in texts], return_offsets_mapping=True, verbose=False)
    rows = zip(encoded["input_ids"], encoded["offset_mapping"], texts, strict=True)
    return [_row(ids, offsets, text.ends) for ids, offsets, text in rows]


def _row(tokens: Sequence[int], offsets: Sequence[tuple[int, int]], ends: tuple[int, ...]) -> FacetRow:
    ids: list[int] = []
    facets: list[int] = []
    for token, (start, end) in zip(tokens, offsets, strict=True):
        if end == start and facets:  # added behind the text; what is added in front belongs to the prefix
            continue
        ids.append(token)
        facets.append(PREFIX if end == start else bisect_right(ends, start))
    missing = set(range(1, len(ends))) - set(facets)
    if missing:
        raise ValueError(
            f"facet {min(missing)} got no token of its own: the tokenizer merges it with its neighbour; begin every "
            "facet of the template with a blank"
        )
    return FacetRow(ids, facets)


def collate(rows: Sequence[FacetRow], pad_id: int, padding_side: Literal["left", "right"] = "left") -> FacetBatch:
    """Rows of different length as one batch; which id fills them up does not matter to any result."""
    length = max((len(row.input_ids) for row in rows), default=0)
    ids = torch.full((len(rows), length), pad_id)
    facets = torch.full((len(rows), length), PADDING)
    for index, row in enumerate(rows):
        count = len(row.input_ids)
        place = slice(length - count, length) if padding_side == "left" else slice(0, count)
        ids[index, place] = torch.tensor(row.input_ids)
        facets[index, place] = torch.tensor(row.facet_ids)
    return FacetBatch(ids, facets)


def facet_mask(facet_ids: Tensor, compat: Compat = "none", window: Tensor | None = None) -> Tensor:
    """Who may attend to whom: j <= i and (facet(j) = 0 or facet(j) = facet(i)), and never to padding.

    Args:
        facet_ids: (B, N) int, see `FacetBatch`; padding on either side.
        compat: "none" hides padding as keys (padding itself sees only itself, so that no row is empty).
            "official" repeats the published code: padding is emptied as *query* and stays visible as key.
            "causal_pad" repeats its other versions: padding is an ordinary prefix token.
        window: Further limit (B, N, N) bool, for blocks with a sliding window.

    Returns:
        (B, 1, N, N) bool, True = attend; one mask for all heads.

    Deviation: the published mask lets padding leak prompt words into captions and between facets of a padded batch;
    without padding all three variants are the same.
    """
    length = facet_ids.shape[1]
    pad = facet_ids == PADDING
    facets = facet_ids.where(~pad, PREFIX)
    asks, keys = facets[:, :, None], facets[:, None, :]  # (B, N, 1), (B, 1, N)
    causal = torch.ones(length, length, dtype=torch.bool, device=facet_ids.device).tril()
    allowed = causal & ((keys == PREFIX) | (keys == asks))
    if compat == "official":
        allowed = allowed & ~pad[:, :, None]
    elif compat == "none":
        alone = torch.eye(length, dtype=torch.bool, device=facet_ids.device)
        allowed = (allowed & ~pad[:, None, :] & ~pad[:, :, None]) | (alone & pad[:, :, None])
    return (allowed if window is None else allowed & window)[:, None]


def facet_positions(facet_ids: Tensor, positions: Positions = "consecutive") -> Tensor:
    """Position ids, counted over real tokens.

    Args:
        facet_ids: (B, N) int, see `FacetBatch`.
        positions: "consecutive" counts on through all facets, as the published embeddings do; facet k then equals a
            pass of its own that keeps the gap. "reset" lets every facet begin right behind the prefix; facet k then
            equals the ordinary pass of prefix and prompt k.

    Returns:
        (B, N) int64; padding gets 0.
    """
    real = facet_ids != PADDING
    consecutive = (real.cumsum(dim=1) - 1).clamp(min=0)
    if positions == "consecutive":
        return consecutive
    before = torch.stack([(facet_ids == k).sum(dim=1) for k in range(1, int(facet_ids.max()) + 1)], dim=1)  # (B, K)
    skipped = torch.cat([torch.zeros_like(before[:, :1]), before.cumsum(dim=1)], dim=1)  # tokens of earlier facets
    return (consecutive - skipped.gather(1, (facet_ids - 1).clamp(min=0))).where(real, 0)


def facet_slots(facet_ids: Tensor, facets: int) -> Tensor:
    """Index of the last token of each facet, row by row, (B, K) int64."""
    place = torch.arange(facet_ids.shape[1], device=facet_ids.device)
    number = torch.arange(1, facets + 1, device=facet_ids.device)[:, None]
    return place.where(facet_ids[:, None] == number, -1).amax(dim=-1)
