"""Which voxels a sentence is compared with: the attention of the sentence level on the grid of the scan.

Dims: K sentences, S regions, X Y Z voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mm.kernels import local_attention
from mm.medical.tasks.scan_input import regions_to_scan
from mm.medical.velvet.loss import LevelEmbeddings

if TYPE_CHECKING:
    from mm.medical.velvet.model import VelvetModel


@torch.inference_mode()
def sentence_attention(
    model: VelvetModel, levels: LevelEmbeddings, sentences: Sequence[str], shape: tuple[int, int, int]
) -> NDArray[np.float32]:
    """One map per sentence on the voxels of a scan, (K, X, Y, Z); each sums to 1 over regions before it is smoothed.

    Args:
        model: With a sentence level.
        levels: Of one scan, from `model.embed`.
        sentences: Texts (K).
        shape: Of the scan.

    Raises:
        ValueError: no sentence level, or no sentence.
    """
    weights = sentence_weights(model, levels, sentences)
    grid, edge = levels.grids["sentence"], model.config.vision.volume_size
    return np.stack([regions_to_scan(row, grid, edge, shape) for row in weights])


@torch.inference_mode()
def sentence_weights(model: VelvetModel, levels: LevelEmbeddings, sentences: Sequence[str]) -> Tensor:
    """Attention of each sentence over the regions of a scan, (K, S); rows sum to 1.

    Raises:
        ValueError: no sentence level, or no sentence.
    """
    text = model.encode_text(**model.tokenize([list(sentences)])).embeddings
    if levels.sentence is None or text.sentence is None or text.sentence_keep is None:
        raise ValueError("this model has no sentence level: it can't say where a sentence looks")
    local = model.config.local
    tokens = text.sentence[0][text.sentence_keep[0]]
    return local_attention(
        levels.sentence[0],
        tokens,
        region_temperature=local.region_temperature,
        pre_scale=local.pre_scale,
        normalize_before_attention=local.normalize_before_attention,
    )
