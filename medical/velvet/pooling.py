"""Word, sentence and report vectors from token states, without a loop over tokens.

Dims: B reports, N tokens (and room for N units), K sentence numbers, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mm.medical.velvet.config import TextConfig


@dataclass(frozen=True)
class TextUnits:
    """Vectors of the three text levels."""

    report: Tensor
    """The [CLS] unit, (B, D)."""
    sentence: Tensor
    """One vector per sentence number, (B, K, D)."""
    sentence_keep: Tensor
    """True where that sentence exists, (B, K) bool."""
    word: Tensor
    """Words and marks at the place of their unit, zeros elsewhere, (B, N, D)."""
    word_keep: Tensor
    """True where a word or mark stands, (B, N) bool."""


def combine_layers(states: Sequence[Tensor], last: int, reduction: Literal["sum", "mean"]) -> Tensor:
    """Sum or mean of the last layers' outputs, (B, N, D)."""
    chosen = torch.stack(list(states[-last:]))
    return chosen.sum(0) if reduction == "sum" else chosen.mean(0)


def sum_units(states: Tensor, unit_starts: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Add the pieces of each word.

    Args:
        states: (B, N, D).
        unit_starts: True where a unit begins, (B, N) bool.
        attention_mask: 1 or True = real, (B, N).

    Returns:
        units: The j-th unit at place j, zeros behind the last, (B, N, D).
        place: Unit that each token belongs to, (B, N) int; padding has that of the last real token.
    """
    place = (unit_starts.cumsum(1) - 1).clamp(min=0)
    real = attention_mask.bool()[..., None].to(states.dtype)
    index = place[..., None].expand_as(states)
    return torch.zeros_like(states).scatter_add(1, index, states * real), place


def pool_levels(
    states: Tensor,
    input_ids: Tensor,
    token_type_ids: Tensor,
    attention_mask: Tensor,
    unit_starts: Tensor,
    config: TextConfig,
    sentence_vector: Literal["mean", "token"] = "mean",
) -> TextUnits:
    """Vectors of the three levels.

    Report: the [CLS] unit. Sentence k: mean over the units from [SEN_k] up to the next sentence token, [SEN_k]
    included. Words: every unit that is no special token.

    Args:
        states: Combined layer outputs, (B, N, D).
        input_ids, token_type_ids, attention_mask, unit_starts: As in `TokenBatch`, (B, N).
        config: Special ids and the number of sentence tokens.
        sentence_vector: mean as above, or token: the state of [SEN_k] alone.

    Source: level embeddings of the published code. Deviation: the last word of a report that fills all places is
        kept, and [SEP] is no word.
    """
    real = attention_mask.bool()
    units, place = sum_units(states, unit_starts, real)
    begins = unit_starts & real

    def at_units(values: Tensor) -> Tensor:
        """A property of tokens at the place of the unit that begins there, (B, N)."""
        return torch.zeros_like(values).scatter_add(1, place, torch.where(begins, values, 0))

    number = at_units(token_type_ids)  # sentence of each unit, 0 behind the last
    cls = at_units((input_ids == config.cls_id).long()).bool()
    sen = at_units((input_ids >= config.first_sentence_id).long()).bool()
    sep = at_units((input_ids == config.sep_id).long()).bool()
    exists = at_units(torch.ones_like(input_ids)).bool()

    members = exists & ~cls & (sen if sentence_vector == "token" else torch.ones_like(sen))
    groups = torch.arange(1, config.max_sentences + 1, device=states.device)
    weights = (members[:, None] & (number[:, None] == groups[:, None])).to(states.dtype)  # (B, K, N)
    counts = weights.sum(-1, keepdim=True)
    has_token = ((number[:, None] == groups[:, None]) & sen[:, None]).any(-1)
    return TextUnits(
        report=units[:, 0],
        sentence=weights @ units / counts.clamp(min=1),
        sentence_keep=has_token,
        word=units,
        word_keep=exists & ~cls & ~sen & ~sep,
    )
