"""The tiny parts that the shipped demonstrations share: a language model, a vision tower, and a host made of both."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from mm.backbone import LanguageBackbone
from mm.data.tokenizer import tiny_tokenizer, word_ids
from mm.data.words import BOARD_WORDS, CELLS, COLOURS, DIGITS, SCENE_WORDS, SHAPES, VOCABULARY
from mm.vision import ImagePreprocessing, TowerConfig, VisionTower, build_tower
from mm.vlm import PromptConfig, VisionLanguageModel

EMBEDDING_STD = 0.3
"""Spread of the tiny model's word embeddings; with the usual 0.02 it does not find the lookup within its few steps."""
WEIGHT_STD = 0.05
TOWER = TowerConfig(
    library="timm",
    name="vit_tiny_patch16_224",
    options={"patch_size": 8, "embed_dim": 96, "depth": 3, "num_heads": 4, "mlp_ratio": 3.0, "class_token": False}
    | {"global_pool": ""},
    layer=-1,
    final_norm=True,
    preprocessing=ImagePreprocessing(size=64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
)
"""A cell of a board is one patch: 64 pixels, 8 x 8 patches of 8 pixels."""
WAVE_SIZE, LONGEST_WAVE = 0.3, 20.0
"""Of the position embeddings at the start: amplitude, and ratio of the longest to the shortest wave."""
TOWER_256 = TowerConfig(
    library="timm",
    name="vit_tiny_patch16_224",
    options={"patch_size": 8, "embed_dim": 96, "depth": 6, "num_heads": 4, "mlp_ratio": 3.0, "class_token": True}
    | {"reg_tokens": 4, "global_pool": ""},
    layer=-1,
    final_norm=True,
    preprocessing=ImagePreprocessing(size=128, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
)
"""128 pixels, 16 x 16 patches of 8 pixels; a class token, and registers that take what concerns the whole picture."""
PROMPT = PromptConfig(format="chat")
"""The chat template of the tiny tokenizer is the form of the text corpus."""


def tiny_language(seed: int = 0, *, width: int = 128, depth: int = 4) -> LanguageBackbone:
    """A Llama of 1.3 million parameters over the vocabulary of the procedural world.

    Shorthand words start as the sum of the words they stand for ("e3seven" = "e3" + "seven"), and the output layer
    starts as the embedding, so that training has to find the lookup and not six hundred synonyms first.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    ids = word_ids()
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=depth,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        initializer_range=WEIGHT_STD,
        tie_word_embeddings=False,
        pad_token_id=ids["<pad>"],
        bos_token_id=ids["<bos>"],
        eos_token_id=ids["<eos>"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    embedding = cast(Tensor, model.get_input_embeddings().weight)
    with torch.no_grad():
        for word, parts in shorthand_parts().items():
            embedding[ids[word]] = sum(embedding[ids[part]] for part in parts)
        cast(Tensor, model.get_output_embeddings().weight).copy_(embedding)
        embedding.mul_(EMBEDDING_STD / WEIGHT_STD)
    return LanguageBackbone(model, tiny_tokenizer())


def shorthand_parts() -> dict[str, tuple[str, ...]]:
    """Every shorthand word and the words it stands for."""
    boards = [(cell, digit) for cell in CELLS for digit in DIGITS]
    scenes = [(str(place), colour, shape) for place in range(1, 10) for colour in COLOURS for shape in SHAPES]
    return dict(zip(BOARD_WORDS + SCENE_WORDS, [*boards, *scenes], strict=True))


def tiny_tower(seed: int = 0, **options: Any) -> VisionTower:
    """A vision transformer of 0.35 million parameters for pictures of 64 pixels.

    Args:
        seed: Of the random weights.
        options: Sizes that differ (timm's keywords).
    """
    config = replace(TOWER, options=TOWER.options | options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_tower(config)


def tiny_tower_256(seed: int = 0, **options: Any) -> VisionTower:
    """A vision transformer of 0.6 million parameters with a class token, for pictures of 128 pixels.

    Its position embeddings start as waves, so that neighbours are alike and need not be found one by one.

    Args:
        seed: Of the random weights.
        options: Sizes that differ (timm's keywords).
    """
    config = replace(TOWER_256, options=TOWER_256.options | options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower = build_tower(config)
    with torch.no_grad():
        tower.module.pos_embed[0, -tower.num_tokens :] = WAVE_SIZE * grid_waves(tower.width, tower.grid[0])
    return tower


def grid_waves(width: int, side: int) -> Tensor:
    """Sines and cosines of the column and of the row at falling frequencies, (side * side, width) float32."""
    frequencies = LONGEST_WAVE ** -torch.linspace(0, 1, width // 4)
    place = torch.arange(side).float()
    rows, columns = (axis.reshape(-1, 1) * frequencies for axis in torch.meshgrid(place, place, indexing="ij"))
    return torch.cat([columns.sin(), columns.cos(), rows.sin(), rows.cos()], dim=1)


def llava_tiny(seed: int = 0, *, width: int = 128, depth: int = 4) -> VisionLanguageModel:
    """The concatenation host of the tiny parts with random weights: 64 visual tokens between the words.

    Args:
        seed: Of the random weights.
        width: Channels of the language model.
        depth: Its blocks.
    """
    language, tower = tiny_language(seed, width=width, depth=depth), tiny_tower(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VisionLanguageModel.from_parts(tower, language, prompt=PROMPT).eval()


def llava_tiny_256(seed: int = 0, *, width: int = 128, depth: int = 4) -> VisionLanguageModel:
    """The concatenation host with random weights for pictures of 128 pixels: 256 visual tokens between the words.

    Args:
        seed: Of the random weights.
        width: Channels of the language model.
        depth: Its blocks.
    """
    language, tower = tiny_language(seed, width=width, depth=depth), tiny_tower_256(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VisionLanguageModel.from_parts(tower, language, prompt=PROMPT).eval()
