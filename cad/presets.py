"""Named OpenECAD models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from mm.backbone import LanguageBackbone
from mm.cad.model import OpenECAD
from mm.cad.tokenizer import program_tokenizer
from mm.vision import build_tower
from mm.zoo.presets import TOWER

PATCH = 8
"""Pixels per side of a patch: a picture is 64 visual tokens, so that an edge lies in few of them."""


def openecad_tiny(
    seed: int = 0, *, width: int = 128, depth: int = 3, tower_width: int = 128, tower_depth: int = 6
) -> OpenECAD:
    """A model of 1.7 million parameters for pictures of 64 pixels, with random weights.

    Args:
        seed: Of the random weights.
        width: Channels of the language model.
        depth: Its blocks.
        tower_width: Channels of the vision tower.
        tower_depth: Its blocks.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = program_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=depth,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        initializer_range=0.05,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    options: dict[str, Any] = {"patch_size": PATCH, "embed_dim": tower_width, "depth": tower_depth}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower = build_tower(replace(TOWER, options=TOWER.options | options))
        model = OpenECAD.from_parts(tower, LanguageBackbone(LlamaForCausalLM(config), tokenizer))
    assert isinstance(model, OpenECAD)
    return model.eval()
