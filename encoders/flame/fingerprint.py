"""A short name for everything that decides a text embedding, so that stored embeddings of another tower are refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mm.encoders.flame.text import FacetTextEncoder

SAMPLES = 65_536
"""Values of a tensor that are looked at, evenly spaced: all of a small model, a part of a large matrix."""
DIGITS = 16


def fingerprint(encoder: FacetTextEncoder) -> str:
    """Sixteen hexadecimal digits over weights, architecture, layer, positions, templates and tokenizer.

    Only what runs counts: blocks behind the chosen layer and the head may differ. The dtype counts, the device not.
    """
    backbone = encoder.backbone
    settings = {
        "layers": encoder.layers,
        "templates": {name: asdict(template) for name, template in sorted(encoder.templates.items())},
        "positions": encoder.positions,
        "compat": encoder.compat,
        "max_tokens": encoder.max_tokens,
        "family": backbone.spec.family,
        "config": numbers_of(backbone.config),
    }
    tensors = {f"embedding.{name}": value for name, value in backbone.embedding.state_dict().items()}
    for number, block in enumerate(backbone.layers[: encoder.depth]):
        tensors |= {f"{number}.{name}": value for name, value in block.state_dict().items()}
    return digest(settings, tensors.items(), encoder.tokenizer)


def digest(settings: Any, tensors: Iterable[tuple[str, Tensor]], tokenizer: Any) -> str:
    """Hash of plain settings, tensors and a tokenizer."""
    found = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in tensors:
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(_sampled(tensor))
    found.update(_tokenizer_bytes(tokenizer))
    return found.hexdigest()[:DIGITS]


def numbers_of(config: Any) -> dict[str, Any]:
    """What of a Hugging Face config changes the numbers; not where it came from, nor how many blocks were kept."""
    data = config.to_dict()
    described = ("transformers_version", "architectures", "_name_or_path", "dtype", "torch_dtype", "use_cache")
    return {key: value for key, value in data.items() if key not in (*described, "num_hidden_layers", "layer_types")}


def _sampled(tensor: Tensor) -> bytes:
    flat = tensor.detach().flatten()
    step = max(1, flat.numel() // SAMPLES)
    return flat[::step].contiguous().cpu().view(torch.uint8).numpy().tobytes()


def _tokenizer_bytes(tokenizer: Any) -> bytes:
    """The tokenizer itself, without the padding and truncation that callers set on it."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state = {key: value for key, value in state.items() if key not in ("padding", "truncation")}
    return json.dumps([state, tokenizer.bos_token], sort_keys=True).encode()
