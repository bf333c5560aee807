"""The two cubes made of one scan: the whole scan squeezed for the report, and a crop for self-supervision; turns.

Dims: C channels, H W D voxels, N edge of the cube.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

PLANES = {"published": (-2, -1), "axial": (-3, -2)}
"""Axes of (..., H, W, D) that a quarter turn mixes; the published code turns W and D, which is not the axial plane."""


def slice_numbers(depth: int, count: int) -> Tensor:
    """`count` slices of `depth`, evenly placed and rounded; slices repeat where there are too few.

    Example:
        >>> slice_numbers(4, 6).tolist()
        [0, 1, 1, 2, 2, 3]
    """
    if depth < 1:
        raise ValueError(f"a volume needs at least one slice, got {depth}")
    return torch.linspace(0, depth - 1, count, dtype=torch.float64).round().long()


def global_volume(volume: Tensor, size: int = 96) -> Tensor:
    """The whole scan as a cube: evenly spaced slices along the last axis, then the plane resized by area.

    Args:
        volume: (C, H, W, D), any real dtype.
        size: Edge of the cube (N).

    Returns:
        (C, N, N, N) float.

    Source: published code of VELVET-Med; slices are picked, not interpolated.
    """
    if volume.ndim != 4:
        raise ValueError(f"volume must be (C, H, W, D), got {tuple(volume.shape)}")
    picked = volume[..., slice_numbers(volume.shape[-1], size).to(volume.device)]
    wide = picked if picked.is_floating_point() else picked.float()
    plane = F.interpolate(wide.movedim(-1, 0), size=(size, size), mode="area")  # (N, C, N, N)
    return plane.movedim(0, -1)


def local_volume(volume: Tensor, size: int = 96, generator: torch.Generator | None = None) -> Tensor:
    """A random cube at working resolution; short axes are padded evenly with the volume's lowest value.

    Args:
        volume: (C, H, W, D).
        size: Edge of the cube (N).
        generator: Draws the place.

    Returns:
        (C, N, N, N), dtype of `volume`.
    """
    if volume.ndim != 4:
        raise ValueError(f"volume must be (C, H, W, D), got {tuple(volume.shape)}")
    short = [max(0, size - edge) for edge in volume.shape[:0:-1]]
    pads = [part for lack in short for part in (lack // 2, lack - lack // 2)]
    padded = F.pad(volume, pads, value=float(volume.min()))
    places = [int(torch.randint(edge - size + 1, (), generator=generator)) for edge in padded.shape[1:]]
    h, w, d = places
    return padded[:, h : h + size, w : w + size, d : d + size]


def quarter_turns(volumes: Tensor, turns: Tensor, plane: Literal["published", "axial"] = "published") -> Tensor:
    """Turn each volume by its number of quarter turns.

    Args:
        volumes: (B, C, H, W, D); the two turned axes must be equally long.
        turns: 0 to 3 per volume, (B,) int.
        plane: See `PLANES`.

    Returns:
        (B, C, H, W, D).

    Raises:
        ValueError: the axes of the plane differ in length.
    """
    if plane not in PLANES:
        raise ValueError(f"plane must be one of {', '.join(PLANES)}, got {plane!r}")
    first, second = PLANES[plane]
    if volumes.shape[first] != volumes.shape[second]:
        raise ValueError(f"a quarter turn needs equal axes, got {volumes.shape[first]} and {volumes.shape[second]}")
    return torch.stack([torch.rot90(v, k, (first, second)) for v, k in zip(volumes, turns.tolist(), strict=True)])
