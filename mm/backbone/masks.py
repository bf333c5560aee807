"""Attention masks and positions for an owned block loop.

A caller says what may be attended to in one of four ways; each is lowered to what the attention implementation of the
model really understands. The libraries do not check this: `eager` adds a boolean mask as if it were numbers, flex
attention on CPU crashes on a dense mask, and position ids with gaps are read as several packed samples when no mask is
given. Here masks are always built without position ids, so gaps are just gaps.

Dims: B batch, H heads, N new tokens, M = tokens in the cache + N.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask
from transformers import Cache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

FULL, SLIDING = "full_attention", "sliding_attention"
Attention = Tensor | BlockMask | Mapping[str, "Tensor | BlockMask | None"] | None


def layer_masks(
    config: Any, kinds: set[str], hidden: Tensor, attention: Attention, cache: Cache | None
) -> dict[str, Any]:
    """One lowered mask per kind of block.

    Args:
        config: The decoder's config; its attention implementation decides the form of the masks.
        kinds: Block kinds in use, out of "full_attention" and "sliding_attention".
        hidden: Block input, (B, N, D).
        attention: `None` (causal); a 2-D padding mask (B, M), bool or 0/1, True = real token, causality and windows are
            added; a 4-D bool mask (B|1, H|1, N, M) or a `BlockMask`, which says everything, causality and windows
            included; or a mapping from block kind to one of those.
        cache: Key/value cache that already holds M - N tokens.

    Raises:
        ValueError: wrong rank, dtype or shape, or a mask that this attention implementation cannot use.
    """
    if not isinstance(attention, Mapping):
        return {kind: _lower(config, kind, hidden, attention, cache) for kind in kinds}
    missing = sorted(kinds - set(attention))
    if missing:
        raise ValueError(f"attention: no mask for block kind {', '.join(missing)}; got {', '.join(sorted(attention))}")
    return {kind: _lower(config, kind, hidden, attention[kind], cache) for kind in kinds}


def _lower(config: Any, kind: str, hidden: Tensor, attention: Any, cache: Cache | None) -> Any:
    batch, length = hidden.shape[:2]
    total = length + seen_tokens(cache)
    if attention is None or (isinstance(attention, Tensor) and attention.ndim == 2):
        if attention is not None and tuple(attention.shape) != (batch, total):
            raise ValueError(
                f"attention: a 2-D mask covers cached and new tokens, expected shape {(batch, total)}, "
                f"got {tuple(attention.shape)}"
            )
        build = create_sliding_window_causal_mask if kind == SLIDING else create_causal_mask
        # position_ids stay out: with them and no mask, a gap would be taken for the border of a packed sample.
        return build(config=config, inputs_embeds=hidden, attention_mask=attention, past_key_values=cache)
    _check_full_mask(attention, batch, length, total, cache)
    return _FORMS[_form(config._attn_implementation)](attention, hidden)


def _check_full_mask(attention: Any, batch: int, length: int, total: int, cache: Cache | None) -> None:
    if not isinstance(attention, BlockMask) and not (
        isinstance(attention, Tensor) and attention.ndim == 4 and attention.dtype == torch.bool
    ):
        found = f"{attention.ndim}-D {attention.dtype}" if isinstance(attention, Tensor) else type(attention).__name__
        raise ValueError(
            "attention must be None, a 2-D padding mask (B, M), a 4-D bool mask (B|1, H|1, N, M) with True = attend, "
            f"or a BlockMask; got {found}"
        )
    shape = tuple(attention.shape)
    if shape[0] not in (1, batch) or shape[2:] != (length, total):
        raise ValueError(f"attention: expected ({batch}|1, heads|1, {length}, {total}), got {shape}")
    if cache is not None and any(cache.is_sliding):
        raise ValueError(
            "attention: a 4-D mask needs all past keys, but this cache drops those outside the sliding window; pass "
            "cache=transformers.DynamicCache() instead"
        )


def _form(implementation: str) -> str:
    if implementation in _FORMS:
        return implementation
    raise ValueError(
        f"attention: {implementation} takes no 4-D or block masks; use model.set_attn_implementation('sdpa'), "
        "'eager' or 'flex_attention', or a 2-D padding mask"
    )


def _boolean(attention: Tensor | BlockMask, hidden: Tensor) -> Tensor:
    if isinstance(attention, BlockMask):
        batch, heads, queries, keys = attention.shape
        attention = create_mask(attention.mask_mod, batch, heads, queries, keys, device=str(hidden.device))
    return attention.to(hidden.device)


def _additive(attention: Tensor | BlockMask, hidden: Tensor) -> Tensor:
    keep = _boolean(attention, hidden)
    bias = torch.zeros(keep.shape, dtype=hidden.dtype, device=hidden.device)
    return bias.masked_fill(~keep, torch.finfo(hidden.dtype).min)


def _blocks(attention: Tensor | BlockMask, hidden: Tensor) -> BlockMask:
    if isinstance(attention, BlockMask):
        return attention
    keep = attention.to(hidden.device)
    batch, heads, queries, keys = keep.shape

    def allowed(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return keep[b if batch > 1 else 0, h if heads > 1 else 0, q, k]

    return create_block_mask(allowed, batch, heads, queries, keys, device=str(hidden.device))


_FORMS = {"sdpa": _boolean, "eager": _additive, "flex_attention": _blocks}


def seen_tokens(cache: Cache | None) -> int:
    """Tokens that went through the cache so far."""
    return 0 if cache is None else cache.get_seq_length()


def token_positions(hidden: Tensor, attention: Attention, positions: Tensor | None, cache: Cache | None) -> Tensor:
    """Position ids of the new tokens, (B|1, N) int64.

    Without `positions`, a 2-D mask counts real tokens only (so that left padding shifts nothing), anything else counts
    on from the cache.

    Raises:
        ValueError: `positions` is not an integer tensor of shape (N,), (1, N) or (B, N).
    """
    batch, length = hidden.shape[:2]
    if positions is not None:
        given = positions[None] if positions.ndim == 1 else positions
        if given.is_floating_point() or given.shape not in ((1, length), (batch, length)):
            raise ValueError(
                f"positions: expected integers of shape ({length},), (1, {length}) or ({batch}, {length}), "
                f"got {positions.dtype} {tuple(positions.shape)}"
            )
        return given.to(hidden.device, torch.long)
    if isinstance(attention, Tensor) and attention.ndim == 2:
        counts = attention.to(hidden.device, torch.long).cumsum(dim=1) - 1
        return counts.clamp(min=0)[:, -length:]
    start = seen_tokens(cache)
    return torch.arange(start, start + length, device=hidden.device)[None]
