"""Named writers with random weights."""

from __future__ import annotations

from typing import Any

import torch

from mm.medical.tasks.phantom_dialogues import writer_tokenizer
from mm.medical.tasks.writer import GenerationConfig, Writer
from mm.medical.velvet.model import VelvetModel
from mm.medical.velvet.presets import velvet_tiny
from mm.vlm.language import build_language


def velvet_tiny_writer(
    seed: int = 0, *, base: VelvetModel | None = None, width: int = 96, depth: int = 3, **options: Any
) -> Writer:
    """The demonstration: a Llama of a few hundred thousand parameters over the words of the phantom reports.

    Args:
        seed: Of the random weights.
        base: The VELVET-Med model whose adapter and fusion layers it starts from; default: the tiny one with random
            weights.
        width: Channels of the language model.
        depth: Its blocks.
        options: Further fields of `WriterConfig`.
    """
    tokenizer = writer_tokenizer()
    language = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": depth,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 256,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "tie_word_embeddings": True,
    }
    # the reports of phantoms repeat pairs of words ("of the"), which the published search forbids
    fields = {"generation": GenerationConfig(num_beams=1, no_repeat_ngram_size=0)} | options
    if isinstance(fields["generation"], dict):
        fields["generation"] = GenerationConfig(**fields["generation"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = build_language(language)
        return Writer.around(base or velvet_tiny(seed), backbone, tokenizer, **fields).eval()
