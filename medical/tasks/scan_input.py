"""From a scan in millimetres to the cube that VELVET-Med reads, and from its regions back to the voxels of the scan.

Dims: N edge of the cube, X Y Z voxels of the scan, (h, w, d) grid of regions, S = h w d.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from mm.medical.velvet.volume_views import global_volume, slice_numbers
from mm.medical.volumes.load import load_volume
from mm.medical.volumes.volume import Volume
from mm.medical.volumes.windows import Window, window_named

DEFAULT_WINDOW = "abdomen"
"""Range of VELVET-Med, -175 to 250 HU."""
Scan = Volume | str | Path
"""A scan, or where one lies."""


def as_volume(scan: Scan) -> Volume:
    """The scan itself, read if it is a path."""
    return scan if isinstance(scan, Volume) else load_volume(scan)


def input_window(volume: Volume, window: str | Window | None = None) -> Window:
    """The range that a network sees: `window`, else -175..250 HU, 0..255 for grey values, 1..99 % for unknown units."""
    if window is not None:
        return window_named(window)
    if volume.unit == "unknown":
        low, high = (float(value) for value in np.percentile(volume.hu, (1, 99)))
        return Window(low, high if high > low else low + 1)
    return window_named("grey" if volume.unit == "grey" else DEFAULT_WINDOW)


def cube_of(volume: Volume, edge: int, window: str | Window | None = None) -> Tensor:
    """The whole scan squeezed into the cube of the model, (1, 1, N, N, N) float32 in 0..1.

    Slices are picked before the window is applied: the same numbers, without a second copy of the scan.

    Args:
        volume: The scan.
        edge: Voxels per edge of the cube (N).
        window: Intensity window; default: see `input_window`.
    """
    picked = volume.hu[..., slice_numbers(volume.hu.shape[2], edge).numpy()]
    scaled = input_window(volume, window)(picked)  # clipping comes before the mean over an area
    return global_volume(torch.from_numpy(scaled)[None], edge)[None]


def regions_to_scan(
    values: Tensor, grid: tuple[int, int, int], edge: int, shape: tuple[int, int, int]
) -> NDArray[np.float32]:
    """A value per region as a smooth map on the voxels of the scan.

    Args:
        values: (S,), regions in the order of the encoder.
        grid: Regions per axis; cells of 2^k voxels that may reach beyond the cube.
        edge: Voxels per edge of the cube (N).
        shape: Of the scan (X, Y, Z).

    Returns:
        (X, Y, Z) float32.
    """
    cells = [cell_edge(edge, side) for side in grid]
    covered = tuple(side * cell for side, cell in zip(grid, cells, strict=True))
    coarse = rearrange(values.detach().float().cpu(), "(h w d) -> 1 1 h w d", h=grid[0], w=grid[1], d=grid[2])
    cube = F.interpolate(coarse, size=covered, mode="trilinear", align_corners=False)[:, :, :edge, :edge, :edge]
    fine = F.interpolate(cube, size=shape, mode="trilinear", align_corners=False)
    return fine[0, 0].numpy()


def cell_edge(edge: int, side: int) -> int:
    """Voxels per edge of a region: the power of two of which `side` cover a cube of `edge` voxels.

    Example:
        >>> cell_edge(96, 6), cell_edge(36, 3), cell_edge(36, 5)
        (16, 16, 8)
    """
    return int(2 ** (-(-edge // side) - 1).bit_length())
