"""Centred heads: why the contrast starts to learn at once.

Scans of the same part of the body resemble each other: random encoders give vectors that differ by some 6 % of their
length, all cosines are near 1, and the contrast stays at the logarithm of the batch size. Taking the mean out of what
the heads give, once, before training, spreads the cosines.
Dims: B samples, S regions, L tokens, E contrastive width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mm.medical.velvet.loss import LevelEmbeddings
from mm.medical.velvet.model import VelvetModel


@torch.no_grad()
def centre_levels(model: VelvetModel, batch: Mapping[str, Tensor]) -> None:
    """Move the biases of the level heads so that their vectors have mean zero over a batch.

    Args:
        model: Changed in place; only biases move.
        batch: `volume` (B, 1, N, N, N) and the fields of `TokenBatch` (B, L), some tens of different pairs.

    Deviation: the published code starts from PyTorch's biases.
    """
    tokens = {name: batch[name] for name in ("input_ids", "token_type_ids", "attention_mask", "unit_starts")}
    volume = model.volume_embeddings(model.encode_volume(batch["volume"]))
    text = model.encode_text(**tokens).embeddings
    for level in model.config.levels:
        head = model.level_head(level)
        head.vision.bias.sub_(_mean(volume, level))
        head.text.bias.sub_(_mean(text, level))


def _mean(embeddings: LevelEmbeddings, level: str) -> Tensor:
    """Mean over samples and over the regions or tokens that exist, (E,)."""
    vectors: Tensor = getattr(embeddings, level)
    kept: Tensor | None = getattr(embeddings, f"{level}_keep", None)
    return vectors.flatten(0, -2).mean(0) if kept is None else vectors[kept].mean(0)
