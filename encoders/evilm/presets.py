"""Presets of the catalog."""

from __future__ import annotations

from typing import Any

import torch

from mm.encoders.evilm.config import EViLMConfig, Swin3DConfig, evilm_config
from mm.encoders.evilm.model import EViLM
from mm.encoders.evilm.scenes import ANSWERS
from mm.encoders.evilm.tokenizer import tiny_text_tokenizer


def evilm_tiny(seed: int = 0, *, embed_dim: int = 32, **fields: Any) -> EViLM:
    """A model for two CPU cores with a word-level tokenizer, random weights.

    Three stages give cells of 16 pixels, 4 x 4 of them on a frame of 64 pixels. Each holds 2 x 2 codes of
    `semantic_vq_tiny`.

    Args:
        seed: Of the random weights.
        embed_dim: Channels behind the patch embedding, a multiple of 8.
        fields: Fields of `EViLMConfig` that differ.
    """
    tokenizer = tiny_text_tokenizer()
    sizes: dict[str, Any] = {
        "video": Swin3DConfig(
            embed_dim=embed_dim, depths=(1, 1, 2), num_heads=(2, 4, 8), window=(8, 4, 4), drop_path=0.0
        ),
        "width": 64,
        "num_heads": 4,
        "text_layers": 1,
        "fusion_layers": 2,
        "vocab_size": len(tokenizer),
        "max_text_len": 64,
        "position_grid": 4,
        "codebook_size": 256,
        "contrastive_width": 32,
        "dropout": 0.0,
        "init_std": 0.08,
        "answers": ANSWERS,
        "image_size": 64,
    }
    return _seeded(EViLMConfig(**sizes | fields), seed, tokenizer)


def evilm_tiny_slim(seed: int = 0, **fields: Any) -> EViLM:
    """`evilm_tiny` with half the channels in the trunk, as `evilm_slim` is to `evilm_30m`, random weights."""
    return evilm_tiny(seed, embed_dim=16, **fields)


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
