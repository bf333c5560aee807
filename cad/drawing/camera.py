"""Orthographic cameras: where one looks from, and how the part is fitted into the picture.

Picture coordinates: x to the right, y down, in pixels; depth grows away from the viewer, in mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mm.cad.mesh import Floats

VIEWS: dict[str, tuple[float, float, float]] = {
    "iso": (1, 1, 1),
    "front": (0, -1, 0),
    "back": (0, 1, 0),
    "right": (1, 0, 0),
    "left": (-1, 0, 0),
    "top": (0, 0, 1),
    "bottom": (0, 0, -1),
}
"""Name -> direction from the part to the viewer. z is up; in the top view y is up."""
MARGIN = 0.06
"""Free border, as a share of the smaller side of the picture."""


@dataclass(frozen=True, eq=False)
class Camera:
    """An orthographic camera."""

    right: Floats
    """Unit vector to the right of the picture, (3,)."""
    up: Floats
    """Unit vector to its top, (3,)."""
    back: Floats
    """Unit vector to the viewer, (3,)."""
    scale: float
    """Pixels per mm."""
    shift: Floats
    """Added to x and y in pixels, (2,)."""

    def project(self, points: Floats) -> Floats:
        """Points (..., 3) in mm -> (x, y, depth) (..., 3): pixels, pixels, mm."""
        x = points @ self.right * self.scale + self.shift[0]
        y = points @ self.up * -self.scale + self.shift[1]
        return np.stack([x, y, -(points @ self.back)], axis=-1)


def direction(view: str | Sequence[float]) -> Floats:
    """Unit vector from the part to the viewer.

    Raises:
        ValueError: an unknown name or a vector without direction.
    """
    if isinstance(view, str):
        if view not in VIEWS:
            raise ValueError(f"unknown view {view!r}; choose one of {', '.join(VIEWS)} or give a direction (x, y, z)")
        view = VIEWS[view]
    vector = np.array(view, dtype=np.float64)
    if vector.shape != (3,) or not np.isfinite(vector).all() or not np.linalg.norm(vector):
        raise ValueError(f"a view direction needs three finite numbers, not all 0, got {view}")
    return vector / np.linalg.norm(vector)


def fit(points: Floats, view: str | Sequence[float], width: int, height: int, margin: float = MARGIN) -> Camera:
    """The camera from which `points` (V, 3) fill a picture of `width` x `height` pixels, centred."""
    back = direction(view)
    pole = np.array([0.0, 0.0, 1.0]) if abs(back[2]) < 0.999 else np.array([0.0, np.sign(back[2]), 0.0])
    up = pole - pole @ back * back
    up /= np.linalg.norm(up)
    right = np.cross(up, back)
    flat = np.stack([points @ right, points @ up], axis=1)
    low, high = flat.min(axis=0), flat.max(axis=0)
    free = np.array([width, height]) - 2 * margin * min(width, height)
    scale = float((free / np.maximum(high - low, 1e-12)).min())
    middle = (low + high) / 2
    shift = np.array([width / 2 - middle[0] * scale, height / 2 + middle[1] * scale])
    return Camera(right, up, back, scale, shift)
