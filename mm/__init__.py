"""Efficient multimodal models on one trunk.

Importing `mm` is light: torch and every other heavy library wait until a name below is used.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from mm.catalog import list_models

if TYPE_CHECKING:
    from mm.checkpoint import create_model, load

try:
    __version__ = version("mm")
except PackageNotFoundError:  # a source tree on sys.path without installation
    __version__ = "0.0.0+uninstalled"

__all__ = ["__version__", "create_model", "list_models", "load"]


def __getattr__(name: str) -> Any:
    if name in {"create_model", "load"}:
        from mm import checkpoint

        return getattr(checkpoint, name)
    raise AttributeError(f"module 'mm' has no attribute {name!r}")
