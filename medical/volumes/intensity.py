"""Are these Hounsfield units? What looks like something else is refused or mended, and said.

Air is -1000 HU, water 0, soft tissue about 40. Files that carry 8-bit grey values, or whose slope and intercept were
applied twice, load without an error in most readers and then give wrong results in silence.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from mm.medical.volumes.volume import Unit

Intensity = Literal["hu", "grey", "any"]
"""What the caller expects: CT in HU; 8-bit grey values 0..255 as in M3D; anything, unchecked."""
PADDING = -1024
"""Value that replaces what lies outside the field of view."""
BELOW_AIR = -1100
"""No tissue is below; only padding, noise and streaks."""
IMPOSSIBLE = -5000
"""Below this a whole range of values can't come from a scanner."""
METAL = 8000
"""Implants on an extended scale stay below."""
_SAMPLE = 200_000


def check_intensities(array: NDArray[Any], intensity: Intensity) -> tuple[NDArray[Any], Unit, list[str]]:
    """Check, mend and name the unit.

    Args:
        array: Intensities after slope and intercept, (X, Y, Z).
        intensity: What the caller expects.

    Returns:
        The array (padding replaced), its unit, one sentence per change or doubt.

    Raises:
        ValueError: not what was expected; the message says what it looks like.
    """
    if intensity not in ("hu", "grey", "any"):
        raise ValueError(f"intensity must be hu, grey or any, got {intensity!r}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError("the volume holds NaN or infinite intensities: write it again from the original")
    low, high = float(array.min()), float(array.max())
    if intensity == "any":
        return array, "unknown", [f"intensities from {low:g} to {high:g} are used unchecked"]
    if low == high:
        raise ValueError(f"every voxel is {low:g}: there is nothing in this volume")
    if intensity == "grey":
        if low < 0 or high > 255:
            raise ValueError(f"intensities run from {low:g} to {high:g}, grey values from 0 to 255: use intensity='hu'")
        return array, "grey", []
    if low >= 0 and high <= 255:
        raise ValueError(
            f"intensities run from {low:g} to {high:g}: 8-bit grey values, not HU; "
            "use intensity='grey' for picture data such as M3D, or load the original scan"
        )
    return _check_hu(array, low, high)


def _check_hu(array: NDArray[Any], low: float, high: float) -> tuple[NDArray[Any], Unit, list[str]]:
    notes = []
    if low >= 0:
        notes.append(f"no intensity is below 0 (range {low:g} to {high:g}): slope and intercept may be missing")
    if high > METAL:
        notes.append(f"intensities reach {high:g}, metal about {METAL}: this may be MR, or not in HU")
    sample = array.reshape(-1)[:: max(1, array.size // _SAMPLE)]
    below = sample[sample < BELOW_AIR]
    if _rescaled_twice(sample, below):
        raise ValueError(
            f"intensities run from {low:g} to {high:g}: slope and intercept were probably applied twice; load the "
            "original, or a copy whose header does not repeat them"
        )
    if low < BELOW_AIR:
        count = int(np.count_nonzero(array < BELOW_AIR))
        array = np.where(array < BELOW_AIR, np.asarray(PADDING, array.dtype), array)
        notes.append(f"{count} voxels below {BELOW_AIR} HU (down to {low:g}, padding) were set to {PADDING}")
    return array, cast(Unit, "HU"), notes


def _rescaled_twice(sample: NDArray[Any], below: NDArray[Any]) -> bool:
    """Padding is one value (or two) far below a normal range; a second intercept moves the whole range down."""
    values = len(np.unique(below))
    if below.size and float(below.min()) < IMPOSSIBLE and values > 2:
        return True
    share = below.size / sample.size
    soft = np.count_nonzero((sample > -200) & (sample < 300)) / sample.size
    air = np.count_nonzero((sample > BELOW_AIR) & (sample < -850)) / sample.size
    moved = share > 0.05 and values > 2 and soft < 0.02 and air > 0  # air where nothing is, soft tissue at -1000
    return bool(moved or (share > 0.05 and values > 10 and air < 0.02))
