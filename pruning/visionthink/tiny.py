"""A demonstration model of the Qwen2.5-VL kind, small enough to be trained on a laptop, and its word-level tokenizer.

Patches of 4 pixels, merged 2 x 2: a visual token sees 8 x 8 pixels, so that a picture of 32 x 32 has 16 of them and its
first look 4.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from mm.pruning.visionthink.generator import NEVER_WRITTEN
from mm.pruning.visionthink.protocol import CALL_TEXT, END, START, ToolProtocol
from mm.pruning.visionthink.resolution import ResolutionPolicy
from mm.pruning.visionthink.tool_call import CLOSE, OPEN

PATCH, MERGE = 4, 2
PAD, UNKNOWN = "<pad>", "<unk>"
TAGS = ("<think>", "</think>", "<answer>", "</answer>", OPEN, CLOSE, "<tool_response>", "</tool_response>")
PIECES = r"\w+|\s|[^\w\s]"
"""How text falls into words: runs of letters and digits, and every other character alone."""


@dataclass(frozen=True, kw_only=True)
class TinySizes:
    """Sizes of the demonstration model."""

    width: int = 96
    """Channels of the language model."""
    layers: int = 3
    """Blocks of the language model."""
    vision_width: int = 64
    """Channels of the vision encoder."""
    vision_layers: int = 3
    """Blocks of the vision encoder."""
    heads: int = 4
    """Attention heads of both."""


TINY_PROTOCOL = ToolProtocol(
    system="",
    question="{vision}{question}",
    image_observation="<tool_response>{vision}</tool_response>",
    error_observation="<tool_response>Error: {error}</tool_response>",
)
"""The protocol without its instructions, which a small model cannot follow anyway."""

TINY_POLICY = ResolutionPolicy(min_side=PATCH * MERGE)
"""As in evaluation, with the floor at one visual token."""


def tiny_tokenizer(words: Iterable[str]) -> Any:
    """A word-level tokenizer that knows the tags, the call and the given words, and gives every text back as it was.

    Args:
        words: Texts whose pieces enter the vocabulary.
    """
    import re

    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = [PAD, UNKNOWN, START, END, *NEVER_WRITTEN]
    texts = [*words, CALL_TEXT, "assistant", "user", "system", "\n", " ", "Error: no object found invalid json"]
    pieces = dict.fromkeys(piece for text in texts for piece in re.findall(PIECES, text))
    vocabulary = {token: index for index, token in enumerate([*special, *TAGS, *pieces])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNKNOWN, eos_token=END)


def tiny_processor(words: Iterable[str]) -> SimpleNamespace:
    """Tokenizer and image processor of the demonstration model, as `AdaptiveGenerator` takes them."""
    from transformers import Qwen2VLImageProcessor

    side = PATCH * MERGE
    image_processor = Qwen2VLImageProcessor(
        patch_size=PATCH, merge_size=MERGE, size={"shortest_edge": side**2, "longest_edge": 256 * side**2}
    )
    return SimpleNamespace(tokenizer=tiny_tokenizer(words), image_processor=image_processor)


def tiny_vlm(tokenizer: Any, sizes: TinySizes | None = None, seed: int = 0) -> nn.Module:
    """`Qwen2_5_VLForConditionalGeneration` of demonstration size with random weights.

    Args:
        tokenizer: Gives the vocabulary and the ids of the picture tokens.
        sizes: See `TinySizes`.
        seed: Of the weights; the global random state is left as it was.
    """
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    sizes = sizes or TinySizes()
    vocabulary = tokenizer.get_vocab()
    head = sizes.width // sizes.heads
    quarter = head // 8
    text = {
        "vocab_size": len(vocabulary),
        "hidden_size": sizes.width,
        "intermediate_size": 2 * sizes.width,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.heads,
        "max_position_embeddings": 1024,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [head // 2 - 2 * quarter, quarter, quarter],
        },
        "pad_token_id": vocabulary[PAD],
        "eos_token_id": vocabulary[END],
        "bos_token_id": None,
        "tie_word_embeddings": False,
    }
    vision = {
        "depth": sizes.vision_layers,
        "hidden_size": sizes.vision_width,
        "out_hidden_size": sizes.width,
        "num_heads": sizes.heads,
        "intermediate_size": 2 * sizes.vision_width,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "window_size": 4 * PATCH * MERGE,
        "fullatt_block_indexes": list(range(sizes.vision_layers)),
    }
    ids = {
        "image_token_id": vocabulary["<|image_pad|>"],
        "video_token_id": vocabulary["<|video_pad|>"],
        "vision_start_token_id": vocabulary["<|vision_start|>"],
        "vision_end_token_id": vocabulary["<|vision_end|>"],
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)
        return Qwen2_5_VLForConditionalGeneration(config).eval()
