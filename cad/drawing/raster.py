"""A deterministic software rasteriser: triangles and lines to pixel samples, in numpy.

Every triangle is cut into the rows it crosses and every row into the pixels whose centres it covers, all triangles at
once. An edge that two triangles share is computed the same way in both, so a pixel centre belongs to one of them.
Dims: T triangles, R row pieces, F fragments (a pixel of a triangle), S sample points along lines.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mm.cad.mesh import Floats, Ints

DEPTH_LEVELS = 2**31
"""Steps in which depths are told apart; with them a key has room for 2**32 pixels."""


@dataclass(frozen=True, eq=False)
class Fragments:
    """Pixels covered by triangles, nearest first within each pixel."""

    pixel: Ints
    """y * width + x, ascending, (F,)."""
    depth: Floats
    """mm away from the viewer, (F,)."""
    triangle: Ints
    """Which triangle, (F,)."""
    rank: Ints
    """0 = nearest of its pixel, (F,)."""


def expand(counts: Ints) -> tuple[Ints, Ints]:
    """For each entry `counts[i]` steps: the entry's index and the step's number, both (sum of counts,).

    Example:
        >>> expand(np.array([2, 0, 3]))[1].tolist()
        [0, 1, 0, 1, 2]
    """
    owner = np.repeat(np.arange(len(counts)), counts)
    first = np.cumsum(counts) - counts
    return owner, np.arange(len(owner)) - first[owner]


def rasterise(corners: Floats, width: int, height: int) -> Fragments:
    """Triangles (T, 3, 3) as (x, y, depth) of their corners -> fragments inside the picture."""
    ordered = np.take_along_axis(corners, np.argsort(corners[:, :, 1], axis=1, kind="stable")[:, :, None], axis=1)
    top, middle, bottom = (ordered[:, i] for i in range(3))
    first = np.maximum(np.ceil(top[:, 1] - 0.5), 0).astype(np.int64)
    last = np.minimum(np.ceil(bottom[:, 1] - 0.5) - 1, height - 1).astype(np.int64)
    owner, step = expand(np.maximum(last - first + 1, 0))
    row = first[owner] + step
    y = row.astype(np.float64) + 0.5
    long = _crossing(top[owner], bottom[owner], y)
    upper = y < middle[owner, 1]
    short = np.where(upper, _crossing(top[owner], middle[owner], y), _crossing(middle[owner], bottom[owner], y))
    left = np.maximum(np.ceil(np.minimum(long, short) - 0.5), 0).astype(np.int64)
    right = np.minimum(np.ceil(np.maximum(long, short) - 0.5) - 1, width - 1).astype(np.int64)
    piece, step = expand(np.maximum(right - left + 1, 0))
    x, triangle = left[piece] + step, owner[piece]
    pixel = row[piece] * width + x
    depth = _depth(corners, triangle, x.astype(np.float64) + 0.5, y[piece])
    order = np.argsort(_sort_keys(pixel, depth), kind="stable")  # equal depths stay in the order of the triangles
    pixel, depth, triangle = pixel[order], depth[order], triangle[order]
    starts = np.flatnonzero(np.diff(pixel, prepend=-1))
    _, rank = expand(np.diff(starts, append=len(pixel)))
    return Fragments(pixel, depth, triangle, rank)


def _sort_keys(pixel: Ints, depth: Floats) -> Ints:
    """Pixel and depth in one integer: sorting it is much faster than sorting by two keys."""
    low, high = (depth.min(), depth.max()) if len(depth) else (0.0, 0.0)
    level = (depth - low) / max(high - low, 1e-300) * (DEPTH_LEVELS - 1)
    return pixel * DEPTH_LEVELS + level.astype(np.int64)


def _crossing(start: Floats, end: Floats, y: Floats) -> Floats:
    """x where an edge crosses the height y; edges come with ascending y."""
    rise = end[:, 1] - start[:, 1]
    share = np.divide(y - start[:, 1], rise, out=np.zeros_like(y), where=rise > 0)
    return start[:, 0] + share * (end[:, 0] - start[:, 0])


def _depth(corners: Floats, triangle: Ints, x: Floats, y: Floats) -> Floats:
    """Depth of the triangles' planes at picture points, kept between the depths of their corners."""
    a, u, v = corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]
    safe = np.where(area == 0, 1, area)
    slope_x = (u[:, 2] * v[:, 1] - v[:, 2] * u[:, 1]) / safe
    slope_y = (v[:, 2] * u[:, 0] - u[:, 2] * v[:, 0]) / safe
    plane = a[triangle, 2] + slope_x[triangle] * (x - a[triangle, 0]) + slope_y[triangle] * (y - a[triangle, 1])
    return np.clip(plane, corners[triangle, :, 2].min(axis=1), corners[triangle, :, 2].max(axis=1))


def nearest_depth(fragments: Fragments, width: int, height: int) -> Floats:
    """Depth buffer (height, width), mm; +inf where nothing is."""
    depth = np.full(width * height, np.inf)
    front = fragments.rank == 0
    depth[fragments.pixel[front]] = fragments.depth[front]
    return depth.reshape(height, width)


def line_points(segments: Floats, spacing: float = 0.5) -> Floats:
    """Points along projected segments (E, 2, 3), at most `spacing` pixels apart, ends included, (S, 3)."""
    length = np.abs(segments[:, 1, :2] - segments[:, 0, :2]).max(axis=1)
    steps = np.ceil(length / spacing).astype(np.int64) + 1
    owner, step = expand(steps + 1)
    share = (step / steps[owner])[:, None]
    return segments[owner, 0] * (1 - share) + segments[owner, 1] * share


def farthest_near(depth: Floats, reach: int = 1) -> Floats:
    """For every pixel the largest depth within `reach` pixels: a line on a rim is judged by the side it belongs to."""
    height, width = depth.shape
    padded = np.pad(depth, reach, mode="edge")
    shifts = range(2 * reach + 1)
    return np.max([padded[i : i + height, j : j + width] for i in shifts for j in shifts], axis=0)


def stamp(points: Floats, keep: np.ndarray, radius: float, width: int, height: int) -> np.ndarray:
    """Mask (height, width) of discs of `radius` pixels around the points that are kept."""
    mask = np.zeros((height, width), dtype=bool)
    x, y = points[keep, 0], points[keep, 1]
    reach = int(np.ceil(radius))
    column, row = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    for i in range(-reach, reach + 1):
        for j in range(-reach, reach + 1):
            near = (column + j + 0.5 - x) ** 2 + (row + i + 0.5 - y) ** 2 <= radius**2
            inside = near & (column + j >= 0) & (column + j < width) & (row + i >= 0) & (row + i < height)
            mask[row[inside] + i, column[inside] + j] = True
    return mask
