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
    "questions": ("Question", "ask", "detail_sample", "scene_sample"),
    "captions": ("clip_caption", "long_caption", "short_caption"),
    "tiles": ("TileConfig", "tile_sample"),
    "tasks": ("TASKS", "TaskConfig", "make_sample"),
    "llava_json": ("LlavaJson",),
    "messages_jsonl": ("MessagesJsonl",),
    "image_folder": ("ImageFolder",),
    "webdataset": ("WebDatasetShards",),
    "hf_datasets": ("HFDataset",),
    "caption_table": ("CaptionTable",),
    "collate": ("collate",),
    "contact_sheet": ("contact_sheet",),
    "module": ("ProceduralConfig", "ProceduralData"),
    "folder_module": ("FolderConfig", "FolderData"),
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
