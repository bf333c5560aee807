"""Named semantic tokenizers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mm.codecs.semantic_vq.config import base, tiny
from mm.codecs.semantic_vq.tokenizer import SemanticVQTokenizer


def semantic_vq_tiny(seed: int = 0, **overrides: Any) -> SemanticVQTokenizer:
    """The laptop model with random weights.

    Args:
        seed: Of the random weights.
        overrides: Fields of `SemanticVQConfig` that differ.
    """
    return SemanticVQTokenizer(replace(tiny(), **overrides), seed=seed).eval()


def semantic_vq_tiny_pixels(seed: int = 0, **overrides: Any) -> SemanticVQTokenizer:
    """The control: the same sizes, for codes that rebuild the pixels of their patch; random weights.

    Args:
        seed: Of the random weights.
        overrides: Fields of `SemanticVQConfig` that differ.
    """
    config = replace(tiny(target_width=3 * 8 * 8), teacher="none: pixels of every patch")
    return SemanticVQTokenizer(replace(config, **overrides), seed=seed).eval()


def semantic_vq_base(seed: int = 0, decoder_depth: int = 3, **overrides: Any) -> SemanticVQTokenizer:
    """The published sizes (ViT-B/16, 8192 codes) with random weights.

    Args:
        seed: Of the random weights.
        decoder_depth: Published models have 1 or 3.
        overrides: Fields of `SemanticVQConfig` that differ.
    """
    return SemanticVQTokenizer(replace(base(decoder_depth), **overrides), seed=seed).eval()
