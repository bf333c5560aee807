"""VELVET-Med: CT volumes and reports. Import as `mm.medical`; names are loaded when they are first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_LAZY = {
    "SentenceTokenizer": "mm.medical.velvet.tokenizer",
    "TriBert": "mm.medical.velvet.text",
    "VelvetModel": "mm.medical.velvet.model",
    "hierarchical_contrastive_loss": "mm.medical.velvet.loss",
}
"""Public name -> module."""

__all__ = ["SentenceTokenizer", "TriBert", "VelvetModel", "hierarchical_contrastive_loss"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
