"""VELVET-Med: CT volumes and reports. Import as `mm.medical`; names are loaded when they are first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_LAZY = {
    "SentenceTokenizer": "mm.medical.velvet.tokenizer",
    "TriBert": "mm.medical.velvet.text",
    "VelvetModel": "mm.medical.velvet.model",
    "Volume": "mm.medical.volumes.volume",
    "hierarchical_contrastive_loss": "mm.medical.velvet.loss",
    "load_volume": "mm.medical.volumes.load",
}
"""Public name -> module."""

__all__ = ["SentenceTokenizer", "TriBert", "VelvetModel", "Volume", "hierarchical_contrastive_loss", "load_volume"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
