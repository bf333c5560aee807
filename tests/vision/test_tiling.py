"""Tiles: the right grid, nothing lost, and a way back to the picture."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mm.vision import GRIDS, choose_grid, tile_image


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((100, 100), (1, 1)),  # fits one tile without loss
        ((400, 400), (2, 2)),
        ((200, 448), (1, 2)),
        ((448, 200), (2, 1)),
        ((200, 900), (1, 3)),
        ((900, 100), (3, 1)),
        ((4000, 4000), (2, 2)),
    ],
)
def test_grid_keeps_pixels_first_and_canvas_second(size, grid):
    assert choose_grid(size, tile=224) == grid
    assert choose_grid(size, tile=224, grids=GRIDS[::-1]) == grid


def test_tiles_joined_are_the_scaled_picture_on_its_border():
    values = np.random.default_rng(0).integers(1, 256, (40, 64, 3), dtype=np.uint8)
    tiled = tile_image(Image.fromarray(values), tile=32, grids=[(2, 2)], interpolation="nearest")
    assert len(tiled.tiles) == 4 and len(tiled.pictures) == 5 and tiled.thumbnail.size == (64, 40)
    tiles = [np.asarray(tile) for tile in tiled.tiles]
    canvas = np.vstack([np.hstack(tiles[:2]), np.hstack(tiles[2:])])
    assert np.array_equal(canvas[12:52], values) and not canvas[:12].any() and not canvas[52:].any()


def test_small_picture_is_its_thumbnail_alone():
    tiled = tile_image(Image.new("RGB", (20, 20)), tile=32)
    assert tiled.tiles == [] and len(tiled.pictures) == 1 and tiled.geometry.grid == (1, 1)


@given(st.integers(20, 300), st.integers(20, 300), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_places_travel_to_a_tile_and_back(height, width, along_x, along_y):
    geometry = tile_image(Image.new("RGB", (width, height)), tile=32).geometry
    x, y = along_x * width, along_y * height
    index, tile_x, tile_y = geometry.to_tile(x, y)
    assert -1e-6 <= tile_x <= 32 + 1e-6 and -1e-6 <= tile_y <= 32 + 1e-6
    assert geometry.to_original(index, tile_x, tile_y) == pytest.approx((x, y), abs=1e-6)


def test_a_marked_pixel_is_found_where_the_geometry_says():
    picture = Image.new("RGB", (64, 40))
    picture.paste("white", (50, 30, 54, 34))
    tiled = tile_image(picture, tile=32, grids=[(2, 2)], interpolation="nearest")
    index, x, y = tiled.geometry.to_tile(52, 32)
    assert tiled.tiles[index].getpixel((int(x), int(y))) == (255, 255, 255)


def test_kept_patches_are_those_on_the_picture():
    tiled = tile_image(Image.new("RGB", (64, 40), "white"), tile=32, grids=[(2, 2)], interpolation="nearest")
    keep = tiled.geometry.keep_patches((8, 8))  # patches of 4 pixels; the picture covers rows 12..52 of 64
    assert keep.shape == (16, 16) and keep.all(axis=1).tolist() == [False] * 3 + [True] * 10 + [False] * 3


def test_places_outside_are_refused():
    geometry = tile_image(Image.new("RGB", (64, 40)), tile=32, grids=[(2, 2)]).geometry
    with pytest.raises(ValueError, match=r"place \(65, 1\) is outside the picture of 64 x 40"):
        geometry.to_tile(65, 1)
    with pytest.raises(ValueError, match="has 4 tiles"):
        geometry.to_original(4, 0, 0)
    with pytest.raises(ValueError, match="rows, columns"):
        choose_grid((10, 10), 32, grids=[])
