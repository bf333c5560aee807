"""CT volumes in and out: reading, checking, working grids, sliding windows, pictures, de-identification.

Names are loaded when they are first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_LAZY = {
    "Deidentifier": "deidentify",
    "Prepared": "working_grid",
    "Provenance": "volume",
    "SeveralSeriesError": "dicom_series",
    "Volume": "volume",
    "WINDOWS": "windows",
    "Window": "windows",
    "WorkingGrid": "working_grid",
    "label_meshes": "mesh",
    "label_volumes": "labels",
    "list_series": "load",
    "load_volume": "load",
    "save_nifti": "nifti",
    "scrub_report": "deidentify_text",
    "sliding_labels": "sliding",
    "three_planes": "panel",
}
"""Public name -> module of this package."""

__all__ = [
    "WINDOWS",
    "Deidentifier",
    "Prepared",
    "Provenance",
    "SeveralSeriesError",
    "Volume",
    "Window",
    "WorkingGrid",
    "label_meshes",
    "label_volumes",
    "list_series",
    "load_volume",
    "save_nifti",
    "scrub_report",
    "sliding_labels",
    "three_planes",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
