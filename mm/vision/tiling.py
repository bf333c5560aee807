"""Any-resolution input: a large picture as a grid of tower-sized tiles plus one thumbnail of the whole.

Follows LLaVA-NeXT ("anyres"): the picture keeps its aspect ratio, is scaled to fit the chosen grid and centred on a
dark canvas. The geometry is kept, so that a place on a tile can be traced back to the picture.
Dims: R rows, C columns of tiles, h x w patches per tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mm.vision.preprocessing import RESAMPLING, Interpolation

GRIDS = ((1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1))
"""(rows, columns) of LLaVA-NeXT's five grids, and the plain single tile."""


@dataclass(frozen=True, kw_only=True)
class TileGeometry:
    """Where a picture lies on the canvas of its tiles; all lengths in pixels."""

    image_size: tuple[int, int]
    """(height, width) of the original picture."""
    grid: tuple[int, int]
    """(rows R, columns C) of tiles."""
    tile: int
    """Side of one square tile."""
    scale: float
    """Canvas pixels per picture pixel."""
    offset: tuple[int, int]
    """(top, left) of the picture on the canvas."""
    scaled_size: tuple[int, int]
    """(height, width) of the picture on the canvas."""

    def to_original(self, index: int, x: float, y: float) -> tuple[float, float]:
        """Place (x, y) on tile `index` (raster order) -> (x, y) in the picture; outside it on the padded border."""
        if not 0 <= index < self.grid[0] * self.grid[1]:
            raise ValueError(f"tile index {index}, this grid of {self.grid} has {self.grid[0] * self.grid[1]} tiles")
        row, column = divmod(index, self.grid[1])
        return (
            (column * self.tile + x - self.offset[1]) / self.scaled_size[1] * self.image_size[1],
            (row * self.tile + y - self.offset[0]) / self.scaled_size[0] * self.image_size[0],
        )

    def to_tile(self, x: float, y: float) -> tuple[int, float, float]:
        """Place (x, y) in the picture -> (tile index, x, y on that tile)."""
        height, width = self.image_size
        if not (0 <= x <= width and 0 <= y <= height):
            raise ValueError(f"place ({x}, {y}) is outside the picture of {width} x {height} pixels")
        canvas_x = x / width * self.scaled_size[1] + self.offset[1]
        canvas_y = y / height * self.scaled_size[0] + self.offset[0]
        column = min(int(canvas_x // self.tile), self.grid[1] - 1)
        row = min(int(canvas_y // self.tile), self.grid[0] - 1)
        return row * self.grid[1] + column, canvas_x - column * self.tile, canvas_y - row * self.tile

    def keep_patches(self, patches: tuple[int, int]) -> np.ndarray:
        """Patches whose centre lies on the picture and not on the padded border.

        Args:
            patches: (h, w) patches per tile.

        Returns:
            True = picture, (R * h, C * w) bool in the raster order of the whole canvas.
        """
        rows = (np.arange(self.grid[0] * patches[0]) + 0.5) * self.tile / patches[0] - self.offset[0]
        columns = (np.arange(self.grid[1] * patches[1]) + 0.5) * self.tile / patches[1] - self.offset[1]
        inside_rows = (rows >= 0) & (rows < self.scaled_size[0])
        inside_columns = (columns >= 0) & (columns < self.scaled_size[1])
        return inside_rows[:, None] & inside_columns[None, :]


@dataclass(frozen=True)
class TiledImage:
    """One picture as several."""

    tiles: list[Image.Image]
    """R * C square tiles in raster order; empty for the grid (1, 1), which the thumbnail already covers."""
    thumbnail: Image.Image
    """The whole picture; the tower's own preprocessing brings it to size."""
    geometry: TileGeometry
    """Where the tiles lie."""

    @property
    def pictures(self) -> list[Image.Image]:
        """The thumbnail, then the tiles: the order in which a host reads them."""
        return [self.thumbnail, *self.tiles]


def choose_grid(size: tuple[int, int], tile: int, grids: Sequence[tuple[int, int]] = GRIDS) -> tuple[int, int]:
    """The grid that keeps most of the picture's pixels and, among equals, wastes least canvas.

    Args:
        size: (height, width) of the picture, pixels.
        tile: Side of a tile, pixels.
        grids: Candidates (rows, columns).

    Example:
        >>> choose_grid((300, 900), tile=224), choose_grid((100, 100), tile=224)
        ((1, 3), (1, 1))
    """
    if not grids or min(min(grid) for grid in grids) < 1:
        raise ValueError(f"grids must hold (rows, columns) of at least 1, got {list(grids)}")
    height, width = size

    def merit(grid: tuple[int, int]) -> tuple[int, int]:
        canvas_height, canvas_width = grid[0] * tile, grid[1] * tile
        scale = min(canvas_height / height, canvas_width / width)
        kept = min(int(height * scale) * int(width * scale), height * width)
        return kept, kept - canvas_height * canvas_width

    return max(grids, key=merit)


def tile_image(
    image: Image.Image,
    *,
    tile: int,
    grids: Sequence[tuple[int, int]] = GRIDS,
    interpolation: Interpolation = "bicubic",
    background: tuple[int, int, int] = (0, 0, 0),
) -> TiledImage:
    """Cut a picture into tiles.

    Args:
        image: RGB picture of any size.
        tile: Side of a tile, pixels: the tower's input size.
        grids: Allowed (rows, columns).
        interpolation: Filter that scales the picture onto the grid.
        background: Colour of the border, 0..255.
    """
    width, height = image.size
    rows, columns = grid = choose_grid((height, width), tile, grids)
    scale = min(rows * tile / height, columns * tile / width)
    scaled = (min(max(round(height * scale), 1), rows * tile), min(max(round(width * scale), 1), columns * tile))
    offset = ((rows * tile - scaled[0]) // 2, (columns * tile - scaled[1]) // 2)
    geometry = TileGeometry(
        image_size=(height, width), grid=grid, tile=tile, scale=scale, offset=offset, scaled_size=scaled
    )
    if grid == (1, 1):
        return TiledImage([], image, geometry)
    canvas = Image.new("RGB", (columns * tile, rows * tile), background)
    canvas.paste(image.resize((scaled[1], scaled[0]), RESAMPLING[interpolation]), (offset[1], offset[0]))
    boxes = [(c * tile, r * tile, (c + 1) * tile, (r + 1) * tile) for r in range(rows) for c in range(columns)]
    return TiledImage([canvas.crop(box) for box in boxes], image, geometry)
