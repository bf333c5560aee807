"""Masked words: which tokens are hidden and what stands in their place."""

from __future__ import annotations

import torch
from torch import Tensor

from mm.medical.velvet.config import TextConfig
from mm.medical.velvet.loss import IGNORE

MASKED, RANDOM = 0.8, 0.1
"""Of the chosen tokens: share that becomes [MASK], share that becomes a random id; the rest stays."""


def mask_words(
    input_ids: Tensor, config: TextConfig, generator: torch.Generator | None, share: float = 0.15
) -> tuple[Tensor, Tensor]:
    """Hide words; padding, [CLS], [SEP] and sentence tokens never.

    Args:
        input_ids: (B, N) int.
        config: Special ids and the vocabulary that random ids come from, sentence tokens included, as published.
        generator: Draws, on the CPU, so that a seed means the same on every device; None draws where the ids are.
        share: Probability of each word.

    Returns:
        masked: Ids with some hidden, (B, N).
        labels: Original ids at the chosen places, -100 elsewhere, (B, N).
    """
    where = input_ids.device if generator is None else generator.device
    draws = torch.rand(2, *input_ids.shape, generator=generator, device=where).to(input_ids.device)
    other = torch.randint(config.vocab_size, input_ids.shape, generator=generator, device=where).to(input_ids.device)
    chosen = words_of(input_ids, config) & (draws[0] < share)
    masked = torch.where(chosen & (draws[1] < MASKED), config.mask_id, input_ids)
    masked = torch.where(chosen & (draws[1] >= MASKED) & (draws[1] < MASKED + RANDOM), other, masked)
    return masked, torch.where(chosen, input_ids, IGNORE)


def words_of(input_ids: Tensor, config: TextConfig) -> Tensor:
    """True at tokens that may be hidden, (B, N) bool."""
    word = input_ids < config.first_sentence_id
    for special in (config.pad_id, config.cls_id, config.sep_id):
        word = word & (input_ids != special)
    return word
