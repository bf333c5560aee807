"""Intensity windows: which Hounsfield units a picture or a network sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Window:
    """A range of intensities that is mapped to 0..1 and clipped."""

    low: float
    """Intensity that becomes 0."""
    high: float
    """Intensity that becomes 1."""

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"a window needs low < high, got {self.low} and {self.high}")

    def __call__(self, hu: NDArray[Any]) -> NDArray[np.float32]:
        """Intensities -> 0..1, float32, any shape."""
        scaled = (hu.astype(np.float32) - np.float32(self.low)) / np.float32(self.high - self.low)
        return np.clip(scaled, 0.0, 1.0, out=scaled)


def level(width: float, centre: float) -> Window:
    """A window as radiologists name it.

    Example:
        >>> level(400, 40)
        Window(low=-160.0, high=240.0)
    """
    return Window(centre - width / 2, centre + width / 2)


WINDOWS: dict[str, Window] = {
    "soft_tissue": level(400, 40),
    "lung": level(1500, -600),
    "brain": level(80, 40),
    "bone": level(1800, 400),
    "abdomen": Window(-175.0, 250.0),
    "wide": Window(-1000.0, 1000.0),
    "grey": Window(0.0, 255.0),
}
"""Width/level 400/40, 1500/-600, 80/40, 1800/400; the segmentation range of VELVET-Med; all of a CT; 8-bit pictures."""


def window_named(name: str | Window) -> Window:
    """A preset, or the window itself.

    Raises:
        ValueError: no such preset.
    """
    if isinstance(name, Window):
        return name
    if name not in WINDOWS:
        raise ValueError(f"unknown window {name!r}; there are {', '.join(WINDOWS)}")
    return WINDOWS[name]
