"""Pictures of a part: shaded, transparent, a sheet of four views, or a line drawing. No graphics driver, no window.

White ground, orthographic camera fitted to the part, feature edges drawn over it. The same part gives the same pixels
on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mm.cad.drawing.camera import Camera, fit
from mm.cad.drawing.raster import Fragments, farthest_near, line_points, nearest_depth, rasterise, stamp
from mm.cad.mesh import Floats, Mesh

Style = Literal["shaded", "transparent", "orthographic", "sketch"]
Picture = NDArray[np.uint8]
SHEET: tuple[tuple[float, float, float], ...] = ((1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1))
"""Views of the four-view sheet: top left, top right, bottom left, bottom right (paper section 4)."""
OVERSAMPLING = 2
"""Samples per pixel and side; averaged at the end."""
LIGHT = np.array([0.35, 0.85, 0.4])
"""Light in the camera's frame (right, up, to the viewer)."""


@dataclass(frozen=True, kw_only=True)
class Paint:
    """How a style looks. Colours are shares of white."""

    surface: tuple[float, float, float] = (0.42, 0.46, 0.52)
    """Colour of a surface that faces the light."""
    ambient: float = 0.35
    """Brightness of a surface that faces away from it."""
    opacity: float = 1.0
    """Of one layer of surface."""
    line: float = 1.1
    """Width of visible edges, pixels."""
    hidden: float = 0.0
    """Darkness of hidden edges, 0 = not drawn, 1 = like visible ones."""


PAINTS: dict[str, Paint] = {
    "shaded": Paint(),
    "transparent": Paint(opacity=0.45, hidden=0.45),
    "sketch": Paint(surface=(1.0, 1.0, 1.0), ambient=1.0, hidden=0.25),
}


def render(
    solid: Any,
    view: str | Sequence[float] = "iso",
    style: Style = "shaded",
    size: int | tuple[int, int] = 480,
) -> Picture:
    """Draw a part.

    Args:
        solid: What `build` returns, or a `Mesh`.
        view: Name (iso, front, back, left, right, top, bottom) or direction from the part to the viewer (x, y, z).
            Without meaning for the orthographic sheet, which has four views of its own.
        style: "shaded"; "transparent": everything behind shows through; "orthographic": a 2 x 2 sheet of shaded views
            from (1,1,1), +x, +y and +z; "sketch": edges only, hidden ones pale.
        size: Side of the square picture, or (width, height), pixels.

    Returns:
        RGB, (height, width, 3) uint8.

    Raises:
        ValueError: an unknown view or style, or a size below 8.

    Source: paper section 4 (data set: default, transparent and orthographic pictures).
    Deviation: surfaces are lighter than the paper's dark grey, so that edges stay visible in small pictures.
    """
    mesh: Mesh = getattr(solid, "mesh", solid)
    width, height = (size, size) if isinstance(size, int) else size
    if min(width, height) < 8:
        raise ValueError(f"size must be at least 8 pixels, got {width} x {height}")
    if style == "orthographic":
        return _sheet(mesh, width, height)
    if style not in PAINTS:
        raise ValueError(f"style must be one of {', '.join((*PAINTS, 'orthographic'))}, got {style!r}")
    return _draw(mesh, view, PAINTS[style], width, height)


def silhouette(solid: Any, view: str | Sequence[float] = "iso", size: int | tuple[int, int] = 128) -> NDArray[np.bool_]:
    """Where the part is in its picture, (height, width) bool: pixel centres that it covers."""
    mesh: Mesh = getattr(solid, "mesh", solid)
    width, height = (size, size) if isinstance(size, int) else size
    camera = fit(mesh.vertices, view, width, height)
    covered = np.zeros(width * height, dtype=bool)
    covered[rasterise(camera.project(mesh.corners), width, height).pixel] = True
    return covered.reshape(height, width)


def _sheet(mesh: Mesh, width: int, height: int) -> Picture:
    """Four shaded views; every quarter has half the sides of the sheet."""
    columns, rows = (width // 2, width - width // 2), (height // 2, height - height // 2)
    quarters = [
        _draw(mesh, view, PAINTS["shaded"], columns[index % 2], rows[index // 2]) for index, view in enumerate(SHEET)
    ]
    return np.vstack([np.hstack(quarters[:2]), np.hstack(quarters[2:])])


def _draw(mesh: Mesh, view: str | Sequence[float], paint: Paint, width: int, height: int) -> Picture:
    wide, high = width * OVERSAMPLING, height * OVERSAMPLING
    camera = fit(mesh.vertices, view, wide, high)
    # of an opaque closed surface only the triangles that face the viewer can be seen
    shown = np.arange(len(mesh.triangles)) if paint.opacity < 1 else np.flatnonzero(mesh.normals @ camera.back > 0)
    fragments = rasterise(camera.project(mesh.corners[shown]), wide, high)
    depth = nearest_depth(fragments, wide, high)
    image = _surface(mesh.normals[shown], fragments, camera, paint, wide * high).reshape(high, wide, 3)
    seen, hidden = _edges(mesh, camera, depth, paint)
    image[hidden] *= 1 - paint.hidden
    image[seen] = 0.05
    small = image.reshape(height, OVERSAMPLING, width, OVERSAMPLING, 3).mean(axis=(1, 3))
    return np.round(small * 255).astype(np.uint8)


def _surface(normals: Floats, fragments: Fragments, camera: Camera, paint: Paint, pixels: int) -> Floats:
    """Colours of all pixels, (pixels, 3): layers over white, from the back to the front."""
    axes = np.stack([camera.right, camera.up, camera.back])
    towards = normals @ axes.T @ (LIGHT / np.linalg.norm(LIGHT))
    brightness = paint.ambient + (1 - paint.ambient) * np.clip(0.5 + 0.5 * towards, 0, 1)
    colours = brightness[:, None] * np.minimum(np.array(paint.surface) * 1.6, 1)
    image = np.ones((pixels, 3))
    layers = int(fragments.rank.max(initial=0)) if paint.opacity < 1 else 0
    for layer in range(layers, -1, -1):
        chosen = fragments.rank == layer
        place, colour = fragments.pixel[chosen], colours[fragments.triangle[chosen]]
        image[place] = (1 - paint.opacity) * image[place] + paint.opacity * colour
    return image


def _edges(mesh: Mesh, camera: Camera, depth: Floats, paint: Paint) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks of visible and hidden edges: sharp ones, and contours where the surface turns away."""
    pairs, sides = mesh.edges
    facing = mesh.normals @ camera.back
    contour = (facing[sides[:, 0]] > 1e-9) != (facing[sides[:, 1]] > 1e-9)
    contour[mesh.feature_edges()] = True
    points = line_points(camera.project(mesh.vertices[pairs[contour]]))
    height, width = depth.shape
    column = np.clip(np.floor(points[:, 0]).astype(np.int64), 0, width - 1)
    row = np.clip(np.floor(points[:, 1]).astype(np.int64), 0, height - 1)
    slack = 2.0 / camera.scale  # two pixels in mm: the depth that a sloped surface gains within a pixel or two
    visible = points[:, 2] <= farthest_near(depth)[row, column] + slack
    radius = paint.line * OVERSAMPLING / 2
    seen = stamp(points, visible, radius, width, height)
    hidden = stamp(points, ~visible, radius * 0.7, width, height) if paint.hidden else np.zeros_like(seen)
    return seen, hidden & ~seen
