"""Procedural data sets and readers of the formats of the field.

Everything is a pure function of an integer seed (`Split("train").seed(0)`, ...); names are imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "sample": ("VisualSample",),
    "split": ("Split", "split_of"),
    "boards": ("Board", "BoardConfig", "board_sample", "boards_batch", "sample_board"),
    "scenes": ("Scene", "SceneConfig", "Thing", "render", "sample_scene", "thing_masks"),
    "frames": ("Clip", "ClipConfig", "clip_sample", "sample_clip"),
    "text": ("TextConfig", "corpus", "text_batch"),
    "tokenizer": ("tiny_tokenizer",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'mm.data' has no attribute {name!r}")
    return getattr(import_module(f"mm.data.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
