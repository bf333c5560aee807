"""What a trained VELVET-Med model is used for: segmentation, retrieval, questions, draft reports.

Names are loaded when they are first asked for. Research use only: nothing here is a medical device.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_LAZY = {
    "Hit": "retrieval",
    "IndexBuilder": "index",
    "RetrievalConfig": "retrieval",
    "ScanIndex": "index",
    "ScanItem": "index",
    "Segmentation": "segmentation",
    "TaskMethods": "methods",
    "Writer": "writer",
    "WriterConfig": "writer",
    "retrieve": "retrieval",
    "segment": "segmentation",
}
"""Public name -> module of this package."""

__all__ = [
    "Hit",
    "IndexBuilder",
    "RetrievalConfig",
    "ScanIndex",
    "ScanItem",
    "Segmentation",
    "TaskMethods",
    "Writer",
    "WriterConfig",
    "retrieve",
    "segment",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
