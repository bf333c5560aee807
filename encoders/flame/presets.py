"""Presets of the catalog."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from mm.encoders.flame.config import flame_config
from mm.encoders.flame.model import FlameImageEncoder


def flame_tiny(seed: int = 0, *, text_width: int | None = None, **options: Any) -> FlameImageEncoder:
    """The tiny image encoder with random weights.

    Args:
        seed: Of the random weights.
        text_width: Channels of another text tower.
        options: Sizes of the vision transformer that differ (open_clip's keywords).
    """
    config = flame_config("tiny")
    tower = replace(config.tower, options=config.tower.options | options)
    config = replace(config, tower=tower, text_width=text_width or config.text_width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FlameImageEncoder(config).eval()
