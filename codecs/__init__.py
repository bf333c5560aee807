"""Discrete tokenizers for audio and video. Import as `mm.codecs` (the bare name is Python's own module)."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME_OF = {
    "SemantiCodec": "semanticodec.codec",
    "SemanticVQTokenizer": "semantic_vq.tokenizer",
    "VectorQuantizer": "quantize",
    "VectorQuantizerConfig": "quantize",
}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'mm.codecs' has no attribute {name!r}")
    return getattr(import_module(f"mm.codecs.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
