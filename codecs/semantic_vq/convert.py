"""Published VQ-KD weights (BEiT v2) to our tokenizer: every tensor is loaded, left out by name, or an error.

The files are `torch.save` dicts with the state under `model` or `state_dict`. Sizes are read off the tensors.
Dims: K codes, D code width, W width, N patches.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm.checkpoint import load_state
from mm.codecs.semantic_vq.config import SemanticVQConfig, ViTConfig
from mm.codecs.semantic_vq.quantizer import CosineQuantizerConfig
from mm.codecs.semantic_vq.tokenizer import SemanticVQTokenizer
from mm.codecs.semanticodec.convert import Report, rename

HEAD_WIDTH = 64
"""Channels per attention head in all published files."""
UNUSED = r"(teacher|scaling|loss).*|quantize\.embedding\.(cluster_size|embed_avg|initted)"
"""Teacher and losses, and statistics of the codebook that its update does not read."""
RENAMES = (
    (r"((?:encoder|decoder)\.(?:cls_token|pos_embed|patch_embed\.proj\..*|blocks\..*|fc_norm\..*))", r"\1"),
    (r"((?:en|de)code_task_layer\.[02]\.(?:weight|bias))", r"\1"),
    (r"quantize\.embedding\.weight", r"quantizer.codebook"),
    (r"quantize\.cluster_size", r"quantizer.cluster_size"),
)
"""Published name -> ours; the whole name must match."""


def load_vqkd(path: str | Path, *, teacher: str | None = None) -> tuple[SemanticVQTokenizer, Report]:
    """A tokenizer with published weights.

    Args:
        path: A `vqkd_encoder_base_decoder_*.pth` file.
        teacher: Label of the teacher; default: read from the file name (`_clip` or `_dino`), else "unknown".

    Returns:
        The tokenizer in evaluation mode, and what happened to every tensor.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a state dict of that layout; unknown and missing tensors are listed.
    """
    path = Path(path)
    return vqkd_tokenizer(read_vqkd(path), source=path.name, teacher=teacher or _teacher_of(path.name))


def vqkd_tokenizer(
    tensors: Mapping[str, Tensor], *, source: str = "state dict", teacher: str = "unknown"
) -> tuple[SemanticVQTokenizer, Report]:
    """A tokenizer from a published state dict; see `load_vqkd`."""
    found, report = rename(tensors, RENAMES, UNUSED, source=source)
    tokenizer = SemanticVQTokenizer(vqkd_config(found, source=source, teacher=teacher))
    found["target_mean"] = torch.zeros(tokenizer.config.target_width)
    found["quantizer.started"] = torch.tensor(True)
    found["quantizer.steps"] = torch.zeros((), dtype=torch.int64)
    found["quantizer.idle"] = torch.zeros(tokenizer.config.quantizer.size, dtype=torch.int64)
    load_state(tokenizer, found, source=source)
    return tokenizer.eval(), report


def vqkd_config(tensors: Mapping[str, Tensor], *, source: str, teacher: str) -> SemanticVQConfig:
    """Sizes of a published model, read off its tensors under our names.

    Raises:
        ValueError: a tensor that says a size is missing.
    """
    needed = (
        "encoder.pos_embed",
        "encoder.patch_embed.proj.weight",
        "quantizer.codebook",
        "decode_task_layer.2.weight",
    )
    missing = [name for name in (*needed, "decoder.pos_embed") if name not in tensors]
    if missing:
        raise ValueError(f"{source}: no VQ-KD tokenizer, it lacks {', '.join(missing)}")
    patch = tensors["encoder.patch_embed.proj.weight"].shape[-1]
    side = math.isqrt(tensors["encoder.pos_embed"].shape[1] - 1)
    size, width = tensors["quantizer.codebook"].shape
    return SemanticVQConfig(
        image_size=patch * side,
        patch_size=patch,
        encoder=_transformer(tensors, "encoder"),
        decoder=_transformer(tensors, "decoder"),
        quantizer=CosineQuantizerConfig(size=size, width=width),
        target_width=tensors["decode_task_layer.2.weight"].shape[0],
        teacher=teacher,
    )


def read_vqkd(path: Path) -> dict[str, Tensor]:
    """Tensors of a published file; nothing in it is executed (its training arguments are plain values).

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or not a state dict of tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; the published ones are called vqkd_encoder_base_decoder_*.pth")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            data: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damaged or unsafe files
        raise ValueError(f"{path}: cannot be read as a plain state dict ({error})") from error
    for key in ("model", "state_dict"):
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
            break
    if not isinstance(data, dict) or not all(isinstance(value, Tensor) for value in data.values()):
        raise ValueError(f"{path}: expected a state dict of tensors, at the top or under `model` or `state_dict`")
    return data


def _transformer(tensors: Mapping[str, Tensor], part: str) -> ViTConfig:
    numbers = [int(match[1]) for name in tensors if (match := re.match(rf"{part}\.blocks\.(\d+)\.", name))]
    width = tensors[f"{part}.pos_embed"].shape[-1]
    hidden = tensors.get(f"{part}.blocks.0.mlp.fc1.weight")
    ratio = 4 if hidden is None else hidden.shape[0] // width
    return ViTConfig(
        width=width, depth=max(numbers, default=0) + 1, num_heads=max(width // HEAD_WIDTH, 1), mlp_ratio=ratio
    )


def _teacher_of(name: str) -> str:
    if "_clip" in name:
        return "open_clip/ViT-B-16-quickgelu/openai"
    return "dino ViT-B/16" if "_dino" in name else "unknown"
