"""Named models with random weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from mm.medical.velvet.config import LocalConfig, TextConfig, VelvetConfig, VisionConfig
from mm.medical.velvet.data import phantom_tokenizer
from mm.medical.velvet.model import VelvetModel
from mm.medical.velvet.segmenter import Segmenter, SegmenterConfig

TINY_VISION = VisionConfig(embed_dim=12, depths=(1, 1, 2, 1), num_heads=(2, 4, 4, 8), window_size=3, volume_size=36)
TINY_TEXT = TextConfig(width=64, feed_forward=128, layers=2, fusion_layers=2, num_heads=4, dropout=0.0)
TINY_LOCAL = LocalConfig(pre_scale=10.0, impl="reference")
"""Sharper attention than published: with few regions per organ the published scale is close to mean pooling."""
TINY_SEGMENTER = SegmenterConfig(
    vision=TINY_VISION, spacing_mm=(6.0, 6.0, 6.0), patch=64, crop_body=False, bottleneck=False
)
"""Phantoms of 64 voxels fill the field of view, air included; without the bottleneck the weights stay below 4 MB."""


def tiny_config(**changes: Any) -> VelvetConfig:
    """Sizes of the demonstration; `changes` are fields of `VelvetConfig`."""
    text = phantom_tokenizer().text_config(TINY_TEXT)
    fields: dict[str, Any] = {
        "vision": TINY_VISION,
        "text": text,
        "contrastive_width": 64,
        "temperature": "log",
        "local": TINY_LOCAL,
    }
    return VelvetConfig(**(fields | changes))


def velvet_tiny(seed: int = 0, **changes: Any) -> VelvetModel:
    """The demonstration: 36-voxel phantoms, a closed vocabulary.

    Args:
        seed: Of the random weights.
        changes: Fields of `VelvetConfig` that differ.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VelvetModel(tiny_config(**changes), tokenizer=phantom_tokenizer()).eval()


def velvet_bt_sv(seed: int = 0, vision: str = "Sv", text: str = "Bt", **changes: Any) -> VelvetModel:
    """The paper's main model, 242.7 million parameters, or another pair of its sizes; without a vocabulary.

    Args:
        seed: Of the random weights.
        vision: Tv, Sv or Bv.
        text: St or Bt.
        changes: Fields of `VelvetConfig` that differ.
    """
    config = replace(VelvetConfig.preset(vision, text), **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VelvetModel(config).eval()


def velvet_tiny_segmenter(seed: int = 0, **changes: Any) -> Segmenter:
    """Organs of the phantoms at 6 mm, on the encoder of `velvet_tiny`.

    Args:
        seed: Of the random weights.
        changes: Fields of `SegmenterConfig` that differ.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Segmenter(replace(TINY_SEGMENTER, **changes)).eval()
