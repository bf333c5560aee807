"""Small random models of every family, for tests and for the tiny presets.

Weights are drawn wider than the families' own initialisation (standard deviation 0.15 instead of 0.02): with
nearly-zero weights attention is uniform, and a wrong mask or position would hardly change the output.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto import CONFIG_MAPPING

from mm.backbone.openelm import register_openelm


@dataclass(frozen=True, kw_only=True)
class TinySizes:
    """Sizes of a tiny decoder, in one vocabulary for all families."""

    vocab_size: int = 64
    """Tokens; ids 0, 1, 2 are padding, begin and end."""
    width: int = 32
    """Channels of the residual stream; `num_heads` must divide it."""
    depth: int = 4
    """Blocks."""
    num_heads: int = 4
    """Query heads."""
    num_kv_heads: int = 2
    """Key/value heads, where the family groups them."""
    feed_forward: int = 64
    """Channels inside the feed-forward part."""
    max_positions: int = 128
    """Longest sequence."""
    window: int = 8
    """Keys that a sliding-window block sees (Mistral: all blocks; Gemma 2 and 3: every other block)."""
    std: float = 0.15
    """Standard deviation of the random weights."""
    attn_implementation: str | None = None
    """"eager", "sdpa" or "flex_attention"; None takes the family's default."""

    def __post_init__(self) -> None:
        if self.width % self.num_heads or self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads must divide width and num_kv_heads must divide num_heads, got width={self.width}, "
                f"num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}"
            )


def tiny_model(family: str, seed: int = 0, **sizes: Any) -> PreTrainedModel:
    """A random causal LM of `family` in float32; the global random state is left as it was.

    Args:
        family: A `model_type` of `mm.backbone.FAMILIES`, or "smollm" (Llama layout, tied embeddings).
        seed: The weights are a pure function of family, seed and sizes.
        sizes: Fields of `TinySizes`.

    Raises:
        ValueError: unknown family or size.
    """
    unknown = sorted(set(sizes) - {field.name for field in fields(TinySizes)})
    if unknown:
        raise ValueError(
            f"tiny: unknown size {', '.join(unknown)}; known: {', '.join(field.name for field in fields(TinySizes))}"
        )
    size = TinySizes(**sizes)
    config = tiny_config(family, size)
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=size.attn_implementation
        )
    redraw(model, seed, size.std)
    return model.eval()


def tiny_config(family: str, size: TinySizes) -> Any:
    """The Hugging Face config of a tiny model.

    Raises:
        ValueError: unknown family.
    """
    if family not in _CONFIGS:
        raise ValueError(f"tiny: unknown family {family!r}; known: {', '.join(sorted(_CONFIGS))}")
    register_openelm()
    model_type, write = _CONFIGS[family]
    specials: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config_class: Any = CONFIG_MAPPING[model_type]
    return config_class(vocab_size=size.vocab_size, **specials, **write(size))


@torch.no_grad()
def redraw(model: nn.Module, seed: int, std: float) -> None:
    """Normal weights from a local generator; norm weights keep their mean (0 or 1)."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        centre = parameter.mean().round() if parameter.ndim == 1 and name.endswith("weight") else 0.0
        parameter.copy_(centre + std * torch.randn(parameter.shape, generator=generator))


def _llama(size: TinySizes) -> dict[str, Any]:
    return {
        "hidden_size": size.width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.num_heads,
        "num_key_value_heads": size.num_kv_heads,
        "intermediate_size": size.feed_forward,
        "max_position_embeddings": size.max_positions,
        "tie_word_embeddings": False,
    }


def _head_dim(size: TinySizes) -> dict[str, Any]:
    return {"head_dim": size.width // size.num_heads}


def _gemma(size: TinySizes) -> dict[str, Any]:
    return _llama(size) | _head_dim(size) | {"tie_word_embeddings": True}


def _gemma2(size: TinySizes) -> dict[str, Any]:
    return _gemma(size) | {"sliding_window": size.window, "query_pre_attn_scalar": size.width // size.num_heads}


def _gemma3(size: TinySizes) -> dict[str, Any]:
    kinds = ["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(size.depth)]
    return _gemma2(size) | {"layer_types": kinds}


def _gpt2(size: TinySizes) -> dict[str, Any]:
    return {
        "n_embd": size.width,
        "n_layer": size.depth,
        "n_head": size.num_heads,
        "n_inner": size.feed_forward,
        "n_positions": size.max_positions,
    }


def _neox(size: TinySizes) -> dict[str, Any]:
    sizes = _llama(size)
    del sizes["num_key_value_heads"]
    return sizes


def _opt(size: TinySizes) -> dict[str, Any]:
    sizes = _neox(size) | {"ffn_dim": size.feed_forward, "word_embed_proj_dim": size.width}
    del sizes["intermediate_size"]
    return sizes | {"tie_word_embeddings": True}


def _openelm(size: TinySizes) -> dict[str, Any]:
    """Heads and feed-forward widths grow from half to full size over the depth (layer-wise scaling)."""
    growth = [0.5 + 0.5 * i / max(1, size.depth - 1) for i in range(size.depth)]
    kv_heads = [max(1, round(size.num_kv_heads * g)) for g in growth]
    return {
        "model_dim": size.width,
        "num_transformer_layers": size.depth,
        "head_dim": size.width // size.num_heads,
        "num_query_heads": [n * size.num_heads // size.num_kv_heads for n in kv_heads],
        "num_kv_heads": kv_heads,
        "ffn_multipliers": [g * size.feed_forward / size.width for g in growth],
        "ffn_dim_divisor": 8,
        "max_context_length": size.max_positions,
    }


_CONFIGS: dict[str, tuple[str, Any]] = {
    "llama": ("llama", _llama),
    "smollm": ("llama", lambda size: _llama(size) | {"tie_word_embeddings": True}),
    "smollm3": ("smollm3", lambda size: _llama(size) | {"tie_word_embeddings": True}),
    "mistral": ("mistral", lambda size: _llama(size) | _head_dim(size) | {"sliding_window": size.window}),
    "qwen2": ("qwen2", _llama),
    "qwen3": ("qwen3", lambda size: _llama(size) | _head_dim(size)),
    "phi3": ("phi3", _llama),
    "phi": ("phi", _llama),
    "gemma": ("gemma", _gemma),
    "gemma2": ("gemma2", _gemma2),
    "gemma3_text": ("gemma3_text", _gemma3),
    "gpt2": ("gpt2", _gpt2),
    "gpt_neox": ("gpt_neox", _neox),
    "opt": ("opt", _opt),
    "openelm": ("openelm", _openelm),
}
