"""Pieces that several tabs of the app are made of."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mm.app.report import html_table
from mm.extras import require

if TYPE_CHECKING:
    import numpy as np

STYLE = """
.gradio-container { max-width: 72rem !important; margin: auto }
.mm-table { display: block; overflow-x: auto; border: 0 !important; font-variant-numeric: tabular-nums }
.mm-table caption { text-align: left; color: var(--body-text-color-subdued); padding-bottom: .3rem }
.mm-table th, .mm-table td { border: 1px solid var(--border-color-primary); padding: .3rem .5rem; text-align: left }
.mm-table td.number { text-align: right }
.tab-wrapper { max-width: calc(100vw - 4rem) }
[id$="_picture"] img { image-rendering: pixelated; width: 100%; height: 100%; object-fit: contain }
"""
"""What the theme does not know; colours are the theme's, so that light and dark both work."""


def gradio() -> ModuleType:
    """The Gradio module; it takes seconds to import and lives in an extra."""
    return require("gradio", extra="app", purpose="The app")


def own_folder() -> Path:
    """A folder for examples and results, inside the app's temporary folder, which is deleted when the app ends."""
    return Path(tempfile.mkdtemp(dir=os.environ.get("GRADIO_TEMP_DIR")))


def as_path(component: Any) -> Any:
    """Let an upload component (picture, sound, video) hand over the file as it came, as a path.

    Reading it is ours, so that a file which is none of its kind ends in our sentence and not in Gradio's.
    """
    component.preprocess = lambda payload: None if payload is None else payload.path
    return component


def picture_input(tab: str, label: str = "Picture", value: str | None = None, **options: Any) -> Any:
    """A picture that is uploaded, pasted or taken; the handler gets a path or None."""
    return as_path(
        gradio().Image(
            value,
            label=label,
            type="filepath",
            sources=["upload", "clipboard"],
            elem_id=f"{tab}_picture",
            height=280,
            **options,
        )
    )


def model_input(tab: str, choices: Sequence[str], label: str = "Model", name: str = "model") -> Any:
    """A shipped demonstration, or real weights by folder or hub id."""
    return gradio().Dropdown(
        choices=list(choices),
        value=choices[0],
        label=label,
        info="A shipped demonstration; or type a folder or a hub id with real weights.",
        allow_custom_value=True,
        elem_id=f"{tab}_{name}",
    )


def needed(value: Any, what: str) -> Any:
    """The value of an input that may not stay empty.

    Raises:
        ValueError: it is empty; the sentence asks for `what`.

    Example:
        >>> needed("a.png", "a picture")
        'a.png'
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"There is no input yet: give {what} first.")
    return value


def save_picture(pixels: np.ndarray, path: Path) -> str:
    """Write an array (H, W, 3) of uint8 as PNG; returns the path as text, as examples want it."""
    from PIL import Image

    Image.fromarray(pixels).save(path)
    return str(path)


def over_picture(pixels: np.ndarray, weights: np.ndarray, *, side: int = 256) -> np.ndarray:
    """A map of weights laid over a picture: bright where they are large.

    Args:
        pixels: (H, W, 3) uint8.
        weights: (h, w), not negative, any scale.
        side: Shorter side of the result in pixels.

    Returns:
        uint8, the picture's shape scaled.
    """
    import numpy as np
    from matplotlib import colormaps
    from PIL import Image

    height, width = pixels.shape[:2]
    size = (round(width * side / min(height, width)), round(height * side / min(height, width)))
    colours = (colormaps["magma"](weights / max(float(weights.max()), 1e-12))[..., :3] * 255).astype(np.uint8)
    below, above = (Image.fromarray(array).resize(size, Image.Resampling.NEAREST) for array in (pixels, colours))
    return np.asarray(Image.blend(below, above, 0.6))


def results(rows: Sequence[dict[str, Any]], caption: str) -> str:
    """Rows as a table for `gr.HTML`; every cell is escaped."""
    return html_table(rows, caption, mark="mm-table")
