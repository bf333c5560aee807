"""Codes as colours over the frames they were made of: one colour per code, the same in every picture.

Dims: T frames, h = w codes along a side, S side of the result in pixels.
"""

from __future__ import annotations

import numpy as np
from matplotlib.colors import hsv_to_rgb
from PIL import Image

GOLDEN = 0.6180339887498949
"""Step between the hues of neighbouring codes; no two of the first hundred come near each other."""


def code_colours(codes: np.ndarray) -> np.ndarray:
    """Colours of codes, (...) int -> (..., 3) uint8."""
    hue = (codes * GOLDEN) % 1.0
    value = 0.65 + 0.35 * ((codes * 7) % 5) / 4  # hues repeat nearly after a few hundred codes
    colours = hsv_to_rgb(np.stack([hue, np.full_like(hue, 0.85), value], axis=-1))
    return (colours * 255).round().astype(np.uint8)


def over_frames(frames: np.ndarray, codes: np.ndarray, *, side: int = 256, strength: float = 0.55) -> np.ndarray:
    """Colours of codes laid over frames.

    Args:
        frames: RGB as the tokenizer saw them, (T, s, s, 3) uint8.
        codes: (T, h, w) int.
        side: Side of the result (S).
        strength: Share of the colours, 0..1.

    Returns:
        (T, S, S, 3) uint8.

    Raises:
        ValueError: another number of frames than of maps.
    """
    if len(frames) != len(codes):
        raise ValueError(f"{len(frames)} frames and {len(codes)} maps of codes; they belong in pairs")
    return np.stack(
        [
            np.asarray(Image.blend(_large(frame, side), _large(colours, side), strength))
            for frame, colours in zip(frames, code_colours(codes), strict=True)
        ]
    )


def _large(pixels: np.ndarray, side: int) -> Image.Image:
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
