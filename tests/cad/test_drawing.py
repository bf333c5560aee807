"""The rasteriser against closed forms, and what each style must show."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("manifold3d", reason="parts are built by the mesh kernel: pip install 'mm[cad]'")

from mm.cad.drawing import render, silhouette
from mm.cad.drawing.camera import MARGIN, VIEWS, direction, fit
from mm.cad.drawing.raster import rasterise
from mm.cad.kernel.manifold import build_mesh
from mm.cad.mesh import Mesh


def feature(loops, low, high, operation=0, origin=(0, 0, 0)):
    frame = {"origin": origin, "normal": (0, 0, 1), "x_axis": (1, 0, 0), "y_axis": (0, 1, 0)}
    return {**frame, "loops": loops, "operation": operation, "low": low, "high": high}


def box(width, height, x=0.0, y=0.0):
    corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
    return [{"kind": "line", "start": a, "end": b} for a, b in zip(corners, corners[1:] + corners[:1], strict=True)]


def disc(radius, x=0.0, y=0.0):
    return [{"kind": "circle", "center": (x, y), "radius": radius}]


@pytest.fixture(scope="module")
def brick() -> Mesh:
    return build_mesh([feature([box(40, 20)], 0, 10)])


@pytest.fixture(scope="module")
def bracket() -> Mesh:
    """No two views of it are alike, and it is not its own mirror image."""
    return build_mesh(
        [
            feature([box(30, 20)], 0, 6),
            feature([box(6, 20)], 0, 25, 1),
            feature([disc(3, 22, 6)], 0, 6, 2),
            feature([box(4, 4, 24, 14)], 0, 12, 1),
        ]
    )


SIZE = 400
FREE = SIZE * (1 - 2 * MARGIN)


@pytest.mark.parametrize(("view", "width", "height"), [("front", 40, 10), ("right", 20, 10), ("top", 40, 20)])
def test_silhouettes_of_a_box(brick, view, width, height):
    expected = FREE**2 * min(width, height) / max(width, height)
    assert silhouette(brick, view, SIZE).sum() == pytest.approx(expected, rel=0.01)


def test_silhouettes_of_a_cylinder():
    mesh = build_mesh([feature([disc(10)], 0, 20)], angle=math.radians(1))
    assert silhouette(mesh, "top", SIZE).sum() == pytest.approx(math.pi / 4 * FREE**2, rel=0.01)
    assert silhouette(mesh, "front", SIZE).sum() == pytest.approx(FREE**2, rel=0.01)


def test_every_pixel_belongs_to_one_triangle_of_a_split_surface():
    """Shared edges are neither missed nor covered twice."""
    random = np.random.default_rng(0)
    n = 12
    grid = np.stack(np.meshgrid(*2 * [np.linspace(0, 64, n)], indexing="ij"), axis=-1)
    grid[1:-1, 1:-1] += random.uniform(-1.5, 1.5, (n - 2, n - 2, 2))
    flat = np.concatenate([grid.reshape(-1, 2), np.zeros((n * n, 1))], axis=1)
    a = (np.arange(n - 1)[:, None] * n + np.arange(n - 1)).reshape(-1)
    triangles = np.concatenate([np.stack([a, a + n, a + 1], axis=1), np.stack([a + 1, a + n, a + n + 1], axis=1)])
    found = rasterise(flat[triangles], 64, 64)
    np.testing.assert_array_equal(found.pixel, np.arange(64 * 64))


def test_the_nearest_surface_is_seen(bracket):
    """Depths of the front fragments are those of a ray cast through each pixel by hand."""
    camera = fit(bracket.vertices, "iso", 48, 48)
    corners = camera.project(bracket.corners)
    found = rasterise(corners, 48, 48)
    front = found.rank == 0
    for pixel, depth in list(zip(found.pixel[front], found.depth[front], strict=True))[::37]:
        x, y = pixel % 48 + 0.5, pixel // 48 + 0.5
        hits = [hit for triangle in corners if (hit := _cast(triangle, x, y)) is not None]
        assert depth == pytest.approx(min(hits), abs=1e-6)


def _cast(triangle, x, y):
    (ax, ay, az), (bx, by, bz), (cx, cy, cz) = triangle
    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    if abs(area) < 1e-12:
        return None
    v = ((x - ax) * (cy - ay) - (y - ay) * (cx - ax)) / area
    w = ((bx - ax) * (y - ay) - (by - ay) * (x - ax)) / area
    return az + v * (bz - az) + w * (cz - az) if v >= 0 and w >= 0 and v + w <= 1 else None


def test_views_differ_and_pictures_repeat(bracket):
    pictures = {view: render(bracket, view, size=96) for view in VIEWS}
    for one in pictures:
        for other in pictures:
            assert (one == other) == np.array_equal(pictures[one], pictures[other])
    np.testing.assert_array_equal(render(bracket, "iso", size=96), pictures["iso"])


@pytest.mark.parametrize("style", ["shaded", "transparent", "sketch"])
def test_a_mirrored_part_gives_a_mirrored_picture(bracket, style):
    """From the front, x runs to the right; a renderer or kernel that flips an axis shows the part, not its image."""
    mirrored = bracket.moved(np.diag([-1.0, 1.0, 1.0]), np.zeros(3))
    assert mirrored.volume == pytest.approx(bracket.volume)
    masks = [silhouette(mesh, "top", 97) for mesh in (bracket, mirrored)]
    one, other = (render(mesh, "front", style, 96).astype(int) for mesh in (bracket, mirrored))
    difference = np.abs(one[:, ::-1] - other).max(axis=-1) > 90
    assert difference.mean() < 0.02, "only rims may differ"
    assert (np.abs(one - other).max(axis=-1) > 90).mean() > 0.03
    assert not np.array_equal(*masks)


def test_the_transparent_picture_shows_a_hidden_hole():
    """A blind hole from below is nowhere in the shaded picture from above."""
    whole = build_mesh([feature([box(20, 20)], 0, 10)])
    drilled = build_mesh([feature([box(20, 20)], 0, 10), feature([disc(5, 10, 10)], 0, 4, 2)])
    pairs = {
        style: [render(mesh, "top", style, 96) for mesh in (whole, drilled)] for style in ("shaded", "transparent")
    }
    np.testing.assert_array_equal(*pairs["shaded"])
    assert (pairs["transparent"][0] != pairs["transparent"][1]).any(axis=-1).mean() > 0.01


def test_the_sheet_holds_the_four_views(bracket):
    sheet = render(bracket, style="orthographic", size=128)
    assert sheet.shape == (128, 128, 3)
    for index, view in enumerate(((1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1))):
        row, column = divmod(index, 2)
        quarter = sheet[row * 64 : row * 64 + 64, column * 64 : column * 64 + 64]
        np.testing.assert_array_equal(quarter, render(bracket, view, size=64))


def test_edges_are_dark_and_ground_is_white(brick):
    picture = render(brick, "front", size=(120, 60))
    assert picture.shape == (60, 120, 3)
    assert (picture[0] == 255).all() and picture.min() < 40
    inner = picture[25:35, 40:80]
    assert (inner == inner[0, 0]).all(), "a flat face has one colour"


def test_bad_wishes_are_refused(brick):
    with pytest.raises(ValueError, match="unknown view"):
        render(brick, "above")
    with pytest.raises(ValueError, match="style must be"):
        render(brick, style="oil")
    with pytest.raises(ValueError, match="at least 8"):
        render(brick, size=4)
    with pytest.raises(ValueError, match="three finite numbers"):
        direction((0.0, 0.0, 0.0))


def test_hidden_lines_agree_with_the_rasteriser():
    """Visible lines of the exact drawing lie on dark pixels of the picture; hidden ones are listed apart."""
    pytest.importorskip("OCP", reason="hidden-line drawings need the exact kernel: pip install 'mm[cad]'")
    import re

    from mm.cad import parse
    from mm.cad.drawing import hidden_line_svg
    from mm.cad.examples import PLATE
    from mm.cad.kernel import build

    solid = build(parse(PLATE))
    svg = hidden_line_svg(solid, "iso", 240)
    dark = render(solid, "iso", "sketch", 240).mean(axis=-1) < 200
    near = np.max([np.roll(dark, (i, j), (0, 1)) for i in range(-2, 3) for j in range(-2, 3)], axis=0)
    visible = svg.split('class="visible"')[1]
    points = np.array([[float(n) for n in pair] for pair in re.findall(r"(-?[\d.]+) (-?[\d.]+)(?= L|\")", visible)])
    assert len(points) > 20
    column, row = np.clip(points.astype(int), 0, 239).T
    assert near[row, column].mean() > 0.97
    assert svg.split('class="visible"')[0].count("<path") > 0
    with pytest.raises(ValueError, match="kernel='occ'"):
        hidden_line_svg(build(parse(PLATE), kernel="mesh"))
