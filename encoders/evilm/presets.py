"""Presets of the catalog."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from mm.encoders.evilm.config import EViLMConfig, Swin3DConfig, evilm_config
from mm.encoders.evilm.model import EViLM
from mm.encoders.evilm.tokenizer import tiny_text_tokenizer


def evilm_tiny(seed: int = 0, *, embed_dim: int = 16, **fields: Any) -> EViLM:
    """A model for two CPU cores with a word-level tokenizer, random weights.

    Args:
        seed: Of the random weights.
        embed_dim: Channels behind the patch embedding.
        fields: Fields of `EViLMConfig` that differ.
    """
    tokenizer = tiny_text_tokenizer()
    video = Swin3DConfig(embed_dim=embed_dim, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), drop_path=0.0)
    sizes: dict[str, Any] = {"video": video, "vocab_size": len(tokenizer), "codebook_size": 64, "max_text_len": 64}
    config = replace(evilm_config("debug"), **sizes | {"image_size": 64, "position_grid": 2} | fields)
    return _seeded(config, seed, tokenizer)


def evilm_30m(seed: int = 0, **fields: Any) -> EViLM:
    """The default size, without a tokenizer (bert-base-uncased fits), random weights."""
    return _seeded(evilm_config("evilm_30m", **fields), seed)


def evilm_35m_dual(seed: int = 0, **fields: Any) -> EViLM:
    """With three text layers and contrastive heads, random weights."""
    return _seeded(evilm_config("evilm_35m_dual", **fields), seed)


def evilm_slim(seed: int = 0, **fields: Any) -> EViLM:
    """A thinner trunk: less than 5.2 % of VIOLETv2's operations, random weights."""
    return _seeded(evilm_config("evilm_slim", **fields), seed)


def evilm_swin_t(seed: int = 0, **fields: Any) -> EViLM:
    """With the trunk of Video Swin-T, whose published weights fit, random weights."""
    return _seeded(evilm_config("evilm_swin_t", **fields), seed)


def _seeded(config: EViLMConfig, seed: int, tokenizer: Any = None) -> EViLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return EViLM(config, tokenizer).eval()
