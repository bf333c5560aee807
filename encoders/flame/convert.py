"""Checkpoints of the authors -> ours, and ours -> the layouts of the authors, open_clip and timm.

The published files hold the image side only: `visual.*` (an open_clip vision transformer), `mm.*` (the head) and the
scalars, every key behind `module.`. Checkpoints that one trains with the published code hold the language model as
well (`text.*`), which is left out and counted.
Source: published code and files of FLAME (arXiv:2411.11927).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm.checkpoint import load_state, read_tensors
from mm.encoders.flame.config import FlameVisionConfig, vit
from mm.encoders.flame.model import FlameImageEncoder

WRAPPED = "module."
TEXT = "text."
RENAMED = (("visual.", "tower.module."), ("mm.", "head."))
"""Prefix in the published file, prefix here."""
OPTIONAL = ("logit_scale", "logit_bias")


@dataclass(frozen=True)
class Report:
    """What became of the tensors of a file."""

    loaded: int
    """Tensors that went into the model."""
    left_out: tuple[str, ...]
    """Keys of the language model in the file."""
    absent: tuple[str, ...]
    """Scalars that the file does not hold; they keep their start value, or stay away (`logit_bias`)."""


def load_flame_checkpoint(
    path: str | Path, config: FlameVisionConfig | None = None
) -> tuple[FlameImageEncoder, Report]:
    """Read a published image checkpoint; strict but for the language model and the scalars.

    Args:
        path: A `.pt` file (read with `weights_only=True`) or safetensors.
        config: Sizes and text tower; None reads the sizes off the tensors and assumes the published text tower.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of this kind, or tensors missing, unexpected or of another shape (all named).
    """
    tensors = stripped(read_checkpoint(path))
    ours, left_out = {}, []
    for key, value in tensors.items():
        if key.startswith(TEXT):
            left_out.append(key)
        else:
            ours[renamed(key)] = value
    config = config if config is not None else sizes_of(ours, str(path))
    absent = tuple(key for key in OPTIONAL if key not in ours)
    if "logit_bias" in absent:
        config = replace(config, init_logit_bias=None)
    model = FlameImageEncoder(config)
    load_state(model, ours, source=str(path), new=absent)
    return model.eval(), Report(len(ours), tuple(left_out), absent)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The state dict of a file, whatever stands around it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no tensors in it, or more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    if path.suffix == ".safetensors":
        return read_tensors(path)
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises its own untyped errors for every kind of damage
        raise ValueError(f"{path}: not readable as plain tensors ({error})") from error
    state = data.get("state_dict", data) if isinstance(data, dict) else None
    if not isinstance(state, dict) or not any(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: holds no state_dict of tensors")
    return state


def stripped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys without the prefix that data-parallel training puts in front of all of them."""
    return {key.removeprefix(WRAPPED): value for key, value in tensors.items()}


def renamed(key: str) -> str:
    """A published key under its name here; unknown keys stay and are refused by name when they are loaded."""
    for theirs, ours in RENAMED:
        if key.startswith(theirs):
            return ours + key[len(theirs) :]
    return key


def sizes_of(tensors: Mapping[str, Tensor], source: str) -> FlameVisionConfig:
    """Sizes of tower and head, read off the tensors (our names).

    Raises:
        ValueError: the tensors that show the sizes are missing.
    """
    needed = ("conv1.weight", "positional_embedding", "transformer.resblocks.0.mlp.c_fc.weight")
    missing = [key for key in (*(f"tower.module.{key}" for key in needed), "head.0.weight") if key not in tensors]
    if missing:
        raise ValueError(f"{source}: no FLAME image checkpoint, it lacks {', '.join(missing)}")
    conv, places, fc = (tensors[f"tower.module.{key}"] for key in needed)
    width, patch = int(conv.shape[0]), int(conv.shape[-1])
    size = patch * round((len(places) - 1) ** 0.5)
    blocks = {
        match[1] for key in tensors if (match := re.match(r"tower\.module\.transformer\.resblocks\.(\d+)\.", key))
    }
    linear = sorted(int(match[1]) for key in tensors if (match := re.fullmatch(r"head\.(\d+)\.weight", key)))
    layers = len(linear) - 1  # the last one is the norm
    text_width = int(tensors[f"head.{linear[-1]}.weight"].shape[0])
    proj = tensors.get("tower.module.proj")
    name = "ViT-L-14" if proj is not None and proj.shape[1] == 768 else "ViT-B-16"
    return FlameVisionConfig(
        tower=vit(name, size=size, width=width, layers=len(blocks), patch_size=patch, mlp_ratio=fc.shape[0] / width),
        text_width=text_width,
        mlp_depth=layers,
        hidden=int(tensors["head.0.weight"].shape[0]) if layers > 1 else None,
    )


# --- the way out -------------------------------------------------------------------------------------------------


def to_flame(model: FlameImageEncoder) -> dict[str, Tensor]:
    """State dict in the authors' names, without `module.`; only for open_clip towers."""
    _need_open_clip(model)
    found = {}
    for key, value in model.state_dict().items():
        pair = next(((ours, theirs) for theirs, ours in RENAMED if key.startswith(ours)), ("", ""))
        found[pair[1] + key[len(pair[0]) :]] = value
    return found


def to_open_clip(model: FlameImageEncoder) -> dict[str, Tensor]:
    """State dict of an open_clip `VisionTransformer(pool_type="avg")`: the tower without the head."""
    _need_open_clip(model)
    return dict(model.tower.module.state_dict())


TIMM = (
    (r"class_embedding", "cls_token"),
    (r"positional_embedding", "pos_embed"),
    (r"conv1\.weight", "patch_embed.proj.weight"),
    (r"ln_pre\.(.*)", r"norm_pre.\1"),
    (r"ln_post\.(.*)", r"norm.\1"),
    (r"transformer\.resblocks\.(\d+)\.ln_([12])\.(.*)", r"blocks.\1.norm\2.\3"),
    (r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", r"blocks.\1.attn.qkv.\2"),
    (r"transformer\.resblocks\.(\d+)\.attn\.out_proj\.(.*)", r"blocks.\1.attn.proj.\2"),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(.*)", r"blocks.\1.mlp.fc1.\2"),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(.*)", r"blocks.\1.mlp.fc2.\2"),
)
"""open_clip key (regular expression) -> timm key."""


def to_timm(model: FlameImageEncoder) -> dict[str, Tensor]:
    """State dict of a timm `VisionTransformer(pre_norm=True, num_classes=0)` with LayerNorm eps 1e-5.

    The unused projection is left out. timm's own final norm is `ln_post`, which FLAME does not apply: read the tokens
    in front of it (`forward_intermediates(norm=False)`).
    """
    found = {}
    for key, value in to_open_clip(model).items():
        if key == "proj":
            continue
        name = next(re.sub(f"^{pattern}$", new, key) for pattern, new in TIMM if re.fullmatch(pattern, key))
        found[name] = (
            value.view(1, *([1] * (2 - value.ndim)), *value.shape) if name in ("cls_token", "pos_embed") else value
        )
    return found


def _need_open_clip(model: FlameImageEncoder) -> None:
    library = model.config.tower.library
    if library != "open_clip":
        raise ValueError(f"this layout is that of open_clip's vision transformer; the tower here is from {library}")
