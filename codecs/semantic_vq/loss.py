"""How well features rebuilt from codes point where the teacher's do.

L = mean(1 - cos(rebuilt, teacher)) + commitment
Source: VQ-KD (BEiT v2, arXiv:2208.06366), equation of the training objective, as published in its code.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cosine_distance(features: Tensor, targets: Tensor) -> Tensor:
    """Mean of 1 - cos over all patches; both (..., N, C), computed in float32.

    Raises:
        ValueError: shapes differ.
    """
    if features.shape != targets.shape:
        raise ValueError(
            f"tokenizer rebuilds {tuple(features.shape)}, the teacher gives {tuple(targets.shape)}; patch grid "
            "(image_size / patch_size) and target_width must fit the teacher"
        )
    return 1 - F.cosine_similarity(features.float(), targets.float(), dim=-1).mean()
