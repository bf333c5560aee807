"""Fine detail: a tiny digit on a thing that can be read at full resolution and not at half of it.

The digit is made of two by two pixel blocks, bright on one diagonal and dark on the other. Every block has the colour
of the plate as its mean, so averaging two by two pixels erases the digit exactly. Other filters leave a few grey levels
at the edges of strokes; each block takes one of its two diagonals at random and the plate has a grain of whole blocks,
so what is left drowns in noise. Colour, shape and place of the thing survive halving: questions about them are "easy"
and the question about the digit is "hard" on the same picture.
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
BLOCK = 2
"""Side of one point of the font in pixels of the full resolution."""
COLUMNS, ROWS = 5, 7
"""Blocks of the plate: the font and a border of one block."""
STEP = 55
"""Distance of the bright and dark points from the colour of their block, per channel."""
GRAIN = 14
"""Standard deviation of the colour of the blocks, per channel; values beyond two of them are clipped."""


def mark_pattern(digit: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The plate of a mark at full resolution.

    Returns:
        The digit as +1, -1 and 0, whose two by two blocks all sum to 0, and the grain, constant in every block with
        mean 0 and standard deviation 1; both (ROWS * BLOCK, COLUMNS * BLOCK) float32.
    """
    points = np.array([[pixel == "#" for pixel in row] for row in FONT[digit].split("/")], np.float32)
    signed = np.pad(points * rng.choice([-1.0, 1.0], points.shape), 1)
    checkered = np.kron(signed, [[1.0, -1.0], [-1.0, 1.0]])
    grain = np.kron(np.clip(rng.standard_normal((ROWS, COLUMNS)), -2, 2), np.ones((BLOCK, BLOCK)))
    return checkered.astype(np.float32), grain.astype(np.float32)


def paint_mark(
    canvas: np.ndarray,
    digit: int,
    colour: tuple[int, int, int],
    *,
    x: float,
    y: float,
    full_size: int,
    rng: np.random.Generator,
) -> None:
    """Draw the digit on a small plate close to the body colour, in place.

    At `full_size` pixels every point is one pixel; at any other size pixels get the exact average over their area.

    Args:
        canvas: Picture, (H, W, 3) float32, 0 to 255.
        digit: 0 to 9.
        colour: RGB of the body, 0 to 255.
        x: Centre from the left as a fraction of the side; moved to an even pixel of the full resolution.
        y: Centre from the top, likewise.
        full_size: Side of the picture at full resolution, in pixels.
        rng: What the grain and the diagonals are drawn from.
    """
    width, height, size = COLUMNS * BLOCK, ROWS * BLOCK, len(canvas)
    left, top = (BLOCK * round((c * full_size - n / 2) / BLOCK) for c, n in ((x, width), (y, height)))
    across = overlap(width, size, left / full_size, width / full_size)
    down = overlap(height, size, top / full_size, height / full_size)
    room = STEP + 2 * GRAIN  # so that nothing is clipped and means stay exact
    base = np.clip(np.asarray(colour, np.float32), room, 255 - room)
    checkered, grain = mark_pattern(digit, rng)
    inside = np.outer(down.sum(1), across.sum(1))[..., None]
    drawn = down @ (STEP * checkered + np.rint(GRAIN * grain)) @ across.T
    canvas += inside * (base - canvas) + drawn[..., None]
