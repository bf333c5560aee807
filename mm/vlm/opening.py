"""One way to open whatever answers questions about pictures: our own folders, and those of Hugging Face."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mm.checkpoint import CONFIG_FILE, load, read_json, resolve
from mm.vlm.model import VisionLanguageModel


def open_model(name_or_path: str | Path, *, device: str | torch.device = "cpu") -> Any:
    """A model by a shipped name, a folder or a hub id, of this toolkit or in a layout that `VisionLanguageModel` reads.

    Raises:
        FileNotFoundError: nothing under that name.
        ValueError: a model of another kind, or weights that do not fit.
    """
    folder = resolve(name_or_path)
    if "model_class" in read_json(folder / CONFIG_FILE):
        return load(name_or_path, device=device)
    return VisionLanguageModel.from_pretrained(folder, device=device).eval()
