"""Adapter files: the visual path alone, a few hundred megabytes beside a 7B language model that is not copied.

Keys (safetensors), for the attention conditioner:

    visual_proj.norm.{weight,bias}, visual_proj.fc1.*, visual_proj.fc2.*, visual_proj.{tile_emb,frame_emb,image_emb}
    cond.layers.{i}.kv.{k_proj,v_proj,k_norm}.weight
    cond.layers.{i}.{attn|ffn}.{q_proj,q_norm,out_proj}.weight        # out_proj rows 0..D-1: dgamma, D..2D-1: dbeta
    language_model.*                                                  # only with language_model=True, original keys

Beside it `config.json` with the `LaviConfig` and the shape of the language model it belongs to.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mm.checkpoint import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    config_from_dict,
    load_state,
    read_json,
    read_tensors,
    write_aside,
    write_json,
)
from mm.encoders.lavi.attach import attach
from mm.encoders.lavi.config import LaviConfig
from mm.encoders.lavi.lavi import Lavi

ADAPTER_PREFIXES = ("visual_proj.", "cond.")


def adapter_state(lavi: Lavi) -> dict[str, Tensor]:
    """The tensors of the visual path, without the language model."""
    return {key: value for key, value in lavi.state_dict().items() if key.startswith(ADAPTER_PREFIXES)}


def save_adapter(lavi: Lavi, path: str | Path, *, language_model: bool = False) -> Path:
    """Write the adapter folder, whole or not at all.

    Args:
        lavi: The model.
        path: Folder to write.
        language_model: Also store the language model, under its original keys.
    """
    state = lavi.state_dict() if language_model else adapter_state(lavi)
    with write_aside(path) as folder:
        folder.mkdir()
        write_json(
            folder / CONFIG_FILE, {"kind": "lavi-adapter", "backbone": _identity(lavi), "config": asdict(lavi.config)}
        )
        # Tied weights share memory, which safetensors refuses: every key gets its own copy.
        tensors = {key: value.detach().cpu().clone().contiguous() for key, value in state.items()}
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    return Path(path)


def load_adapter(lavi: Lavi, path: str | Path) -> None:
    """Read an adapter folder into an attached model, strictly.

    Raises:
        FileNotFoundError: no such folder or file.
        ValueError: an adapter of another config or language model, or keys that do not fit; all are named.
    """
    config, identity = read_adapter_config(path)
    own = _identity(lavi)
    for key, value in identity.items():
        if own.get(key) != value:
            raise ValueError(f"{path}: made for a language model with {key}={value}, this one has {key}={own.get(key)}")
    mine, theirs = asdict(lavi.config), asdict(config)
    for key in ("conditioner", "layers", "sites", "modulate", "relative", "width", "num_heads", "activation"):
        if mine[key] != theirs[key]:
            raise ValueError(
                f"{path}: the adapter was made with {key}={theirs[key]!r}, this model has {key}={mine[key]!r}"
            )
    file = Path(path) / WEIGHTS_FILE
    load_state(lavi, read_tensors(file), source=str(file), new=("language_model.",))


def read_adapter_config(path: str | Path) -> tuple[LaviConfig, dict[str, object]]:
    """The `LaviConfig` of an adapter folder and the shape of the language model it was made for.

    Raises:
        FileNotFoundError: no such folder or file.
        ValueError: the folder holds something else, or an unknown key.
    """
    file = Path(path) / CONFIG_FILE
    data = read_json(file)
    if data.get("kind") != "lavi-adapter":
        raise ValueError(f"{file}: not a LaVi adapter folder; whole models are read with mm.load(...)")
    return config_from_dict(LaviConfig, data["config"], source=str(file)), dict(data["backbone"])


def attach_pretrained(model: nn.Module, path: str | Path, *, dtype: torch.dtype | None = None) -> Lavi:
    """`attach` with the config and weights of an adapter folder.

    Raises:
        FileNotFoundError: no such folder or file.
        ValueError: see `attach` and `load_adapter`.
    """
    config, _ = read_adapter_config(path)
    lavi = attach(model, config, dtype=dtype)
    load_adapter(lavi, path)
    return lavi


def _identity(lavi: Lavi) -> dict[str, object]:
    """What must agree between the language model an adapter was trained on and the one it is put on."""
    backbone = lavi.backbone
    return {"family": backbone.spec.family, "width": backbone.width, "depth": backbone.depth}
