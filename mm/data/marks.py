"""Fine detail: a tiny digit on a thing that can be read at full resolution and not at half of it.

The digit is written in a one-pixel checkerboard of the body colour plus and minus a step: every two by two block has
exactly the body colour as its mean, so averaging two by two pixels erases it. What colour or shape the thing has
survives. Questions about the digit are therefore "hard" and questions about the thing "easy" on the same picture.
"""

from __future__ import annotations

import numpy as np

from mm.data.drawing import overlap

FONT = (
    *(
        "###/#.#/#.#/#.#/###",
        ".#./##./.#./.#./###",
        "###/..#/###/#../###",
        "###/..#/.##/..#/###",
        "#.#/#.#/###/..#/..#",
    ),
    *(
        "###/#../###/..#/###",
        "###/#../###/#.#/###",
        "###/..#/.#./.#./.#.",
        "###/#.#/###/#.#/###",
        "###/#.#/###/..#/###",
    ),
)
"""Digits 0..9, three columns and five rows."""
STROKE = 2
"""Side of one point of the font in pixels of the full resolution: one block of the checkerboard."""
WIDTH, HEIGHT = 3 * STROKE, 5 * STROKE
STEP = 70
"""Largest distance from the body colour."""


def mark_pattern(digit: int) -> np.ndarray:
    """The digit as +1, -1 and 0, (HEIGHT, WIDTH) float32; every aligned two by two block sums to 0."""
    points = np.array([[pixel == "#" for pixel in row] for row in FONT[digit].split("/")], np.float32)
    signs = 1.0 - 2.0 * (np.indices((HEIGHT, WIDTH)).sum(0) % 2)
    return (np.kron(points, np.ones((STROKE, STROKE), np.float32)) * signs).astype(np.float32)


def paint_mark(
    canvas: np.ndarray, digit: int, colour: tuple[int, int, int], *, x: float, y: float, full_size: int
) -> None:
    """Draw the digit on a plain plate of the body colour, in place.

    At `full_size` pixels every point is one pixel; at any other size pixels get the exact average over their area.

    Args:
        canvas: Picture, (H, W, 3) float32, 0 to 255.
        digit: 0 to 9.
        colour: RGB of the body, 0 to 255.
        x: Centre from the left as a fraction of the side; moved to an even pixel of the full resolution.
        y: Centre from the top, likewise.
        full_size: Side of the picture at full resolution, in pixels.
    """
    size = len(canvas)
    base = np.asarray(colour, np.float32)
    step = np.minimum(np.minimum(base, 255.0 - base), STEP)
    left, top = (2 * round((c * full_size - n / 2) / 2) for c, n in ((x, WIDTH), (y, HEIGHT)))
    across = overlap(WIDTH + 2, size, (left - 1) / full_size, (WIDTH + 2) / full_size)
    down = overlap(HEIGHT + 2, size, (top - 1) / full_size, (HEIGHT + 2) / full_size)
    plate = np.outer(down.sum(1), across.sum(1))[..., None]
    pattern = down @ np.pad(mark_pattern(digit), 1) @ across.T
    canvas += plate * (base - canvas) + pattern[..., None] * step
