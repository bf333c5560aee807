"""The semantic video tokenizer of E-ViLM: VQ-KD on any teacher."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME_OF = {
    "CallableTeacher": "teacher",
    "CosineQuantizer": "quantizer",
    "CosineQuantizerConfig": "quantizer",
    "SemanticVQConfig": "config",
    "SemanticVQTokenizer": "tokenizer",
    "Teacher": "teacher",
    "TowerTeacher": "teacher",
    "Usage": "tokenizer",
    "ViTConfig": "config",
    "as_teacher": "teacher",
    "base": "config",
    "clip_teacher": "teacher",
    "load_vqkd": "convert",
    "tiny": "config",
}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'mm.codecs.semantic_vq' has no attribute {name!r}")
    return getattr(import_module(f"mm.codecs.semantic_vq.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
