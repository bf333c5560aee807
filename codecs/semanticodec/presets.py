"""Named SemantiCodec models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mm.codecs.semanticodec.codec import SemantiCodec
from mm.codecs.semanticodec.config import paper, tiny


def semanticodec_tiny(seed: int = 0, **overrides: Any) -> SemantiCodec:
    """The laptop model with random weights: 1.28-s segments, 50 tokens per second.

    Args:
        seed: Of the random weights.
        overrides: Fields of `SemantiCodecConfig` that differ.
    """
    return SemantiCodec(replace(tiny(), **overrides), seed=seed).eval()


def _published(token_rate: Any) -> Any:
    def build(seed: int = 0, semantic_vocab: int = 32768) -> SemantiCodec:
        return SemantiCodec(paper(token_rate, semantic_vocab), seed=seed).eval()

    build.__doc__ = f"The published sizes at {token_rate} tokens per second with random weights."
    return build


semanticodec_25, semanticodec_50, semanticodec_100 = (_published(rate) for rate in (25, 50, 100))
