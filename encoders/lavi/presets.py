"""Named LaVi models."""

from __future__ import annotations

from typing import Any

from mm.encoders.lavi.model import LaviModel
from mm.zoo.presets import PROMPT, tiny_language, tiny_tower

TINY = {"layers": "every:1", "width": 64, "num_heads": 2, "num_kv_heads": 2, "qk_norm": False}
"""Adapter of the demonstration. Every block is modulated because there are only four; normalised queries and keys would
keep attention too flat for 64 cells at this width."""


def lavi_tiny(seed: int = 0, *, width: int = 128, depth: int = 4, **lavi: Any) -> LaviModel:
    """LaVi on the tiny language model and tower, all with random weights.

    Args:
        seed: Of the random weights.
        width: Channels of the language model.
        depth: Its blocks.
        lavi: Fields of `LaviConfig` that differ.
    """
    language, tower = tiny_language(seed, width=width, depth=depth), tiny_tower(seed)
    return LaviModel.from_parts(tower, language, lavi=TINY | lavi, prompt=PROMPT, seed=seed, picture_ids="frame").eval()
