"""Anti-aliased shapes from distance functions: the same description draws at any size.

A shape is the set where a signed distance is negative; a pixel's coverage is that distance in pixels, clipped.
Positions and radii are fractions of the picture's side, so 32 and 512 pixels show the same picture.

Dims: H = W picture side in pixels, h, w the pixels around one shape.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]
RIM = 0.09
"""Width of the darker rim of a shape, in radii."""
SHADE = 0.62
"""Brightness of the rim and of the darker part of a texture."""
GRAIN = 64
"""Side of the random field behind a grainy ground."""


def _polygon(corners: int, turn: float) -> Distance:
    """Regular polygon with corners at distance 1: the farthest of its half planes."""
    angles = turn + np.arange(corners) * (2 * np.pi / corners)

    def distance(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        sides = [u * np.cos(angle) + v * np.sin(angle) for angle in angles]
        return np.max(sides, axis=0) - np.cos(np.pi / corners)

    return distance


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Five points: fold the plane onto one half of one point, then one straight edge remains."""
    angle = np.abs((np.arctan2(u, -v) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    radius = np.hypot(u, v)
    x, y = radius * np.cos(angle), radius * np.sin(angle)
    inner = 0.45 * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
    edge = inner - (1.0, 0.0)
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    return (x - 1.0) * normal[0] + y * normal[1]


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    across = np.maximum(np.abs(u) - 0.95, np.abs(v) - 0.34)
    upright = np.maximum(np.abs(u) - 0.34, np.abs(v) - 0.95)
    return np.minimum(across, upright)


DISTANCES: dict[str, Distance] = {
    "circle": lambda u, v: np.hypot(u, v) - 0.92,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 0.82,
    "triangle": _polygon(3, np.pi / 2),
    "diamond": lambda u, v: (np.abs(u) + np.abs(v) - 1.0) / np.sqrt(2.0),
    "star": _star,
    "cross": _cross,
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.68) - 0.26,
    "moon": lambda u, v: np.maximum(np.hypot(u, v) - 0.95, 0.72 - np.hypot(u - 0.5, v)),
}
"""Shape word -> signed distance from its edge, in radii; (u, v) points right and down from the centre, in radii."""


def _wave(phase: np.ndarray, pixels_per_turn: float) -> np.ndarray:
    """A square wave with edges one pixel wide, 0 to 1."""
    return np.clip(0.5 + np.sin(phase) * pixels_per_turn / (2 * np.pi), 0.0, 1.0)


def _dark_part(texture: str, u: np.ndarray, v: np.ndarray, radius_px: float) -> np.ndarray:
    """How much of each pixel belongs to the darker part of a texture, 0 to 1, same shape as `u`."""
    if texture == "striped":
        turns = 2.0
        return _wave(2 * np.pi * turns * (u + v) / np.sqrt(2.0), radius_px / turns)
    if texture == "checked":
        turns = 1.25
        waves = np.sin(2 * np.pi * turns * u) * np.sin(2 * np.pi * turns * v)
        return np.clip(0.5 + waves * radius_px / turns / (2 * np.pi), 0.0, 1.0)
    if texture == "dotted":
        pitch, dot = 0.56, 0.17
        lattice = [(axis + pitch / 2) % pitch - pitch / 2 for axis in (u, v)]
        return np.clip(0.5 - (np.hypot(*lattice) - dot) * radius_px, 0.0, 1.0)
    return np.zeros_like(u)


def around(x: float, y: float, radius: float, size: int) -> tuple[slice, slice, np.ndarray, np.ndarray]:
    """The pixels that a shape can touch.

    Returns:
        Row slice, column slice, and the offsets (u, v) of the pixel centres from (x, y) in radii, each (h, w).
    """
    spans = []
    for centre in (y, x):
        low, high = np.floor((centre - radius) * size) - 1, np.ceil((centre + radius) * size) + 1
        spans.append(slice(int(np.clip(low, 0, size)), int(np.clip(high, 0, size))))
    v, u = (
        (np.arange(span.start, span.stop) + 0.5 - centre * size) / (radius * size)
        for span, centre in zip(spans, (y, x), strict=True)
    )
    u, v = np.meshgrid(u, v)
    return *spans, u, v


def coverage(shape: str, u: np.ndarray, v: np.ndarray, radius_px: float) -> np.ndarray:
    """Part of each pixel that lies inside `shape`, 0 to 1, same shape as `u`.

    Raises:
        ValueError: no such shape.
    """
    if shape not in DISTANCES:
        raise ValueError(f"unknown shape {shape!r}; allowed: {', '.join(DISTANCES)}")
    return np.clip(0.5 - DISTANCES[shape](u, v) * radius_px, 0.0, 1.0)


def paint_shape(
    canvas: np.ndarray,
    shape: str,
    colour: tuple[int, int, int],
    *,
    x: float,
    y: float,
    radius: float,
    texture: str = "plain",
) -> None:
    """Draw one filled, rimmed, textured shape onto `canvas`, in place.

    Args:
        canvas: Picture, (H, W, 3) float32, 0 to 255.
        shape: A key of `DISTANCES`.
        colour: RGB of the brighter part, 0 to 255.
        x: Centre from the left, as a fraction of the side.
        y: Centre from the top, as a fraction of the side.
        radius: Distance from the centre to the farthest corner, as a fraction of the side.
        texture: "plain", "striped", "checked" or "dotted".
    """
    size = len(canvas)
    rows, columns, u, v = around(x, y, radius, size)
    radius_px = radius * size
    inside = coverage(shape, u, v, radius_px)
    rim = np.clip(0.5 + (DISTANCES[shape](u, v) + RIM) * radius_px, 0.0, 1.0)
    shade = 1.0 - (1.0 - SHADE) * np.maximum(rim, _dark_part(texture, u, v, radius_px))
    body = shade[..., None] * np.asarray(colour, np.float32)
    patch = canvas[rows, columns]
    patch += inside[..., None].astype(np.float32) * (body.astype(np.float32) - patch)


def paint_ground(size: int, colour: tuple[int, int, int], pattern: str, grain_seed: int = 0) -> np.ndarray:
    """A background.

    Args:
        size: Side in pixels.
        colour: Mean RGB, 0 to 255.
        pattern: "plain", "striped", "checked" or "grainy".
        grain_seed: Seed of the random field of a grainy ground.

    Returns:
        (H, W, 3) float32, 0 to 255.
    """
    line = (np.arange(size, dtype=np.float32) + 0.5) / size
    if pattern == "striped":
        turns = 4.5
        light = 30.0 * (_wave(2 * np.pi * turns * (line[:, None] + line[None]), size / turns) - 0.5)
    elif pattern == "checked":
        turns = 3.0
        across = _wave(2 * np.pi * turns * line, size / turns) - 0.5
        light = 60.0 * across[:, None] * across[None]
    elif pattern == "grainy":
        field = np.random.default_rng(grain_seed).normal(0.0, 18.0, (GRAIN, GRAIN)).astype(np.float32)
        light = _resample(field, size)
    else:
        light = np.zeros((size, size), np.float32)
    ground = np.asarray(colour, np.float32) + light[..., None].astype(np.float32)
    return np.clip(ground, 0.0, 255.0)


def _resample(field: np.ndarray, size: int) -> np.ndarray:
    """Exact area average of a square field of constant cells on `size` pixels, (H, W)."""
    weights = overlap(len(field), size, 0.0, 1.0)
    return weights @ field @ weights.T


def overlap(cells: int, size: int, start: float, length: float) -> np.ndarray:
    """Share of each pixel that each cell of a row of equal cells covers.

    Args:
        cells: Number of cells in the row.
        size: Number of pixels of the picture's side.
        start: Where the row begins, as a fraction of the side.
        length: How long the row is, as a fraction of the side.

    Returns:
        (size, cells) float32; a row sums to 1 where the pixel lies wholly under the cells.
    """
    edges = (start + length * np.arange(cells + 1) / cells) * size
    pixels = np.arange(size)[:, None]
    covered = np.minimum(pixels + 1, edges[None, 1:]) - np.maximum(pixels, edges[None, :-1])
    return np.clip(covered, 0.0, None).astype(np.float32)
