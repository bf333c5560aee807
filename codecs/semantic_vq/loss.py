"""How well features rebuilt from codes point where the teacher's do.

L = mean(1 - cos(rebuilt, teacher)) + commitment
Source: VQ-KD (BEiT v2, arXiv:2208.06366), equation of the training objective, as published in its code.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def cosine_distance(
    features: Tensor, targets: Tensor, *, weights: Tensor | None = None, mean: Tensor | None = None
) -> Tensor:
    """Mean of 1 - cos over all patches, computed in float32.

    Args:
        features: Rebuilt, (..., N, C).
        targets: The teacher's, (..., N, C).
        weights: Of the patches, (..., N); their mean is taken out. None weighs all alike.
        mean: Taken off both before the angle is measured, (C). Features that share a large mean are nearly parallel:
            without this, rebuilding the mean alone looks like success.

    Raises:
        ValueError: shapes differ.
    """
    if features.shape != targets.shape:
        raise ValueError(
            f"tokenizer rebuilds {tuple(features.shape)}, the teacher gives {tuple(targets.shape)}; patch grid "
            "(image_size / patch_size) and target_width must fit the teacher"
        )
    rebuilt, wanted = features.float(), targets.float()
    if mean is not None:
        rebuilt, wanted = rebuilt - mean, wanted - mean
    distance = 1 - F.cosine_similarity(rebuilt, wanted, dim=-1)
    return distance.mean() if weights is None else (distance * weights).sum() / weights.sum()


def patch_pixels(pictures: Tensor, side: int) -> Tensor:
    """Pixels of every patch in -1..1: pictures (B, 3, S, S) in 0..1, `side` patches per row -> (B, N, 3 p p).

    Codes that rebuild these carry texture: the control that a semantic tokenizer is compared with.
    """
    return rearrange(pictures * 2 - 1, "b c (h p) (w q) -> b (h w) (c p q)", h=side, w=side)
