"""Pictures of what was kept: one panel per stage of the encoder, dropped patches darkened.

Dims: N tokens of the full picture, h x w grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

DIMMED = 0.25
"""Brightness of a dropped patch."""
PANEL = 240
"""Longest side of a panel, pixels."""
CAPTION = 16
"""Height of the line under a panel, pixels."""
ACROSS = 4
"""Panels per row."""


def kept_by_block(last_block: Tensor, blocks: int) -> list[tuple[int, Tensor]]:
    """(block, mask (N,) bool of the tokens that leave it) for the input and every block that dropped some.

    Args:
        last_block: Last block whose output still held each token, (N,); `blocks` for kept ones, -1 for padding.
        blocks: Blocks that ran.

    Returns:
        The first entry has block -1: everything that enters.
    """
    real = last_block[last_block >= 0]
    stages = sorted({int(block) for block in real.tolist() if block < blocks})
    return [(-1, real >= 0), *((block, real > block) for block in stages)]


def keep_map(image: Image.Image, last_block: Tensor, blocks: int, grid: tuple[int, int]) -> Image.Image:
    """One panel per cut.

    Args:
        image: The picture as the encoder saw it (cropped or squashed).
        last_block: See `kept_by_block`; a row of `Pruned.last_block`.
        blocks: Blocks that ran.
        grid: (h, w) tokens of the picture.

    Raises:
        ValueError: the grid does not have as many cells as the picture has tokens.
    """
    stages = kept_by_block(last_block, blocks)
    size = len(stages[0][1])
    if grid[0] * grid[1] != size:
        raise ValueError(f"a grid of {grid[0]} x {grid[1]} does not hold the {size} tokens of this picture")
    panels = []
    for block, kept in stages:
        count = int(kept.sum())
        text = f"input: {count} tokens" if block < 0 else f"after block {block}: {count}"
        panels.append(_panel(image, kept.view(grid).cpu().numpy(), text))
    return _sheet(panels)


def _panel(image: Image.Image, kept: np.ndarray, text: str) -> Image.Image:
    scale = PANEL / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    pixels = np.asarray(image.convert("RGB").resize(size), dtype=np.float32)
    rows = np.arange(size[1]) * kept.shape[0] // size[1]
    columns = np.arange(size[0]) * kept.shape[1] // size[0]
    bright = np.where(kept[rows][:, columns], 1.0, DIMMED)[..., None]
    panel = Image.new("RGB", (size[0], size[1] + CAPTION), "white")
    panel.paste(Image.fromarray((pixels * bright).astype(np.uint8)))
    ImageDraw.Draw(panel).text((2, size[1] + 2), text, fill="black")
    return panel


def _sheet(panels: Sequence[Image.Image]) -> Image.Image:
    width, height = panels[0].size
    across = min(ACROSS, len(panels))
    down = -(-len(panels) // across)
    sheet = Image.new("RGB", (across * width, down * height), "white")
    for number, panel in enumerate(panels):
        sheet.paste(panel, (number % across * width, number // across * height))
    return sheet
