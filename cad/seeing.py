"""From any picture of a part to what the tiny model was trained on: grey, on white, filling a small square."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from mm.cad.drawing.camera import MARGIN
from mm.cad.drawing.picture import Picture
from mm.vision import load_image

PAPER = 250
"""Grey level from which a pixel counts as white ground."""
LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in grey (ITU-R BT.601)."""


def grey(picture: Picture) -> Picture:
    """RGB (..., 3) uint8 -> grey (...) uint8."""
    return np.round(picture.astype(np.float64) @ LUMA).astype(np.uint8)


def drawn(levels: Picture) -> np.ndarray:
    """Mask of the pixels of a grey picture that are not ground."""
    return levels < PAPER


def as_seen(picture: Any, size: int) -> Picture:
    """A picture as the model sees it.

    A picture of another size is cut to what is drawn in it, centred on white with the margin of the renderer, and
    shrunk by area.

    Args:
        picture: File, array, or PIL image; a part on a white ground.
        size: Side of the result, pixels.

    Returns:
        (size, size) uint8.

    Raises:
        ValueError: not a picture, or nothing is drawn in it.
    """
    levels = grey(np.asarray(load_image(picture), dtype=np.uint8))
    mask = drawn(levels)
    if not mask.any():
        raise ValueError("the picture shows no part: it is white all over; give a part on a white ground")
    if levels.shape == (size, size):
        return levels
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    cut = levels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    side = round(max(cut.shape) / (1 - 2 * MARGIN))
    sheet = np.full((side, side), 255, dtype=np.uint8)
    top, left = (side - cut.shape[0]) // 2, (side - cut.shape[1]) // 2
    sheet[top : top + cut.shape[0], left : left + cut.shape[1]] = cut
    return np.asarray(Image.fromarray(sheet).resize((size, size), Image.Resampling.BOX))
