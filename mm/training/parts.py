"""The pre-trained parts that a vision-language training starts from."""

from __future__ import annotations

from pathlib import Path

from mm.backbone import LanguageBackbone
from mm.checkpoint import CONFIG_FILE, load, read_json, resolve
from mm.vision import TowerConfig, VisionTower, build_tower


def load_language(name: str | Path) -> LanguageBackbone:
    """A language model with its tokenizer.

    Args:
        name: Shipped weights of this toolkit ("tiny_lm"), or a folder or hub id of a Hugging Face causal LM.

    Raises:
        FileNotFoundError: nothing under that name.
        ValueError: the folder holds something else.
    """
    folder = resolve(name)
    if "model_class" not in read_json(folder / CONFIG_FILE):
        return LanguageBackbone.from_pretrained(folder)
    model = load(folder)
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, LanguageBackbone):
        raise ValueError(f"{folder}: a {type(model).__name__} is no language model")
    return backbone


def load_tower(name: str, config: TowerConfig | None = None) -> VisionTower:
    """A vision tower.

    Args:
        name: Without `config`: shipped weights of this toolkit ("tiny_vit") or a folder of ours. With `config`: the
            weights as that library names them ("pretrained", a tag, a file, a folder or a hub id).
        config: Library, architecture, layer and preprocessing.

    Raises:
        FileNotFoundError: nothing under that name.
        ValueError: the folder holds something else.
    """
    if config is not None:
        return build_tower(config, weights=name)
    model = load(name)
    tower = getattr(model, "tower", None)
    if not isinstance(tower, VisionTower):
        raise ValueError(f"{name}: a {type(model).__name__} holds no vision tower")
    return tower
