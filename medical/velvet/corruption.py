"""Self-supervised views of a crop: a quarter turn, then boxes of noise and boxes pasted from another sample.

The target of the reconstruction is the turned view before corruption. Everything runs on the CPU, in loading processes.
Dims: B samples, C channels, H W D voxels; a box is (low corner, high corner), voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mm.medical.velvet.volume_views import quarter_turns

Array = NDArray[Any]
Box = tuple[tuple[int, int, int], tuple[int, int, int]]


@dataclass(frozen=True, kw_only=True)
class CorruptionConfig:
    """How much of a view is destroyed."""

    largest_share: float = 0.3
    """The share to cover is drawn from 0 to this; overlaps count twice."""
    largest_edge: float = 0.25
    """Longest box edge over the edge of the volume, exclusive."""
    smallest_edge: float = 0.05
    """Shortest box edge over the edge of the volume."""
    largest_start: float = 0.96
    """Box corners are drawn below this share of the edge; boxes are clipped at the border."""

    def __post_init__(self) -> None:
        if not 0 <= self.largest_share <= 1 or not 0 < self.smallest_edge < self.largest_edge <= 1:
            raise ValueError(
                "corruption needs 0 <= largest_share <= 1 and 0 < smallest_edge < largest_edge <= 1, got "
                f"{self.largest_share}, {self.smallest_edge}, {self.largest_edge}"
            )


@dataclass(frozen=True)
class Views:
    """Two self-supervised views of B crops, the first B rows are one view and the last B the other."""

    corrupted: Tensor
    """What the encoder sees, (2 B, C, H, W, D)."""
    target: Tensor
    """The same before corruption, (2 B, C, H, W, D)."""
    turns: Tensor
    """Quarter turns, (2 B,) int64."""


def make_views(
    volumes: Tensor, generator: torch.Generator, config: CorruptionConfig | None = None, plane: str = "published"
) -> Views:
    """Two views per crop, each with its own turn and its own corruption.

    Args:
        volumes: Crops, (B, C, N, N, N), values in 0 .. 1.
        generator: Draws everything.
        config: How much is destroyed.
        plane: See `quarter_turns`.
    """
    targets, corrupted, turns = [], [], []
    for _ in range(2):
        turn = torch.randint(4, (len(volumes),), generator=generator)
        turned = quarter_turns(volumes, turn, plane)  # type: ignore[arg-type]
        targets.append(turned)
        corrupted.append(corrupt(turned, generator, config))
        turns.append(turn)
    return Views(torch.cat(corrupted), torch.cat(targets), torch.cat(turns))


def corrupt(volumes: Tensor, generator: torch.Generator, config: CorruptionConfig | None = None) -> Tensor:
    """Boxes of noise, then boxes from a random other sample of the batch, sample after sample.

    A partner with a lower number has been corrupted already, one with a higher number has not, as published.

    Args:
        volumes: (B, C, H, W, D); untouched.
        generator: Draws boxes, noise and partners.
        config: How much.

    Returns:
        (B, C, H, W, D) float32, on the CPU.
    """
    config = config or CorruptionConfig()
    result = volumes.float().cpu().numpy().copy()  # many small boxes: numpy spends less on each than torch
    shape = tuple(volumes.shape[2:])
    for number in range(len(volumes)):
        boxes = draw_boxes(shape, generator, config)  # type: ignore[arg-type]
        paste_noise(result[number], boxes, draw_noise(boxes, len(result[number]), generator))
        partner = int(torch.randint(len(volumes), (), generator=generator))
        if partner != number:
            paste(result[number], result[partner], draw_boxes(shape, generator, config))  # type: ignore[arg-type]
    return torch.from_numpy(result)


def draw_boxes(shape: tuple[int, int, int], generator: torch.Generator, config: CorruptionConfig) -> list[Box]:
    """Random boxes until their volumes add up to a drawn share of the whole."""
    edges = torch.tensor(shape)
    wanted = float(torch.rand((), generator=generator)) * config.largest_share * float(edges.prod())
    if wanted <= 0:
        return []
    low = (edges * config.smallest_edge).long().clamp(min=1)
    high = torch.maximum((edges * config.largest_edge).long(), low + 1)
    starts_end = (edges * config.largest_start).long().clamp(min=1)
    boxes: list[Box] = []
    covered = 0.0
    while covered < wanted:
        count = 1 + int((wanted - covered) / float(high.prod()) * 4)  # one draw of random numbers for several boxes
        draw = torch.rand(count, 2, 3, generator=generator, dtype=torch.float64)
        starts = (draw[:, 0] * starts_end).long()
        ends = torch.minimum(starts + low + (draw[:, 1] * (high - low)).long(), edges)
        for start, end, volume in zip(starts.tolist(), ends.tolist(), (ends - starts).prod(1).tolist(), strict=True):
            boxes.append((tuple(start), tuple(end)))
            covered += volume
            if covered >= wanted:
                break
    return boxes


def draw_noise(boxes: list[Box], channels: int, generator: torch.Generator) -> list[Array]:
    """Gaussian noise for each box, brought to 0 .. 1 inside that box; (channels, h, w, d) each."""
    shapes = [(channels, *(high - low for low, high in zip(*box, strict=True))) for box in boxes]
    counts = [math.prod(shape) for shape in shapes]
    flat = torch.randn(sum(counts), generator=generator).numpy()
    parts = np.split(flat, np.cumsum(counts[:-1])) if counts else []
    return [unit_range(part).reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def paste_noise(volume: Array, boxes: list[Box], noise: Sequence[Array]) -> None:
    """Fill boxes of (C, H, W, D), in place; later boxes cover earlier ones."""
    for box, values in zip(boxes, noise, strict=True):
        _inside(volume, box)[:] = values


def paste(volume: Array, other: Array, boxes: list[Box]) -> None:
    """Copy the boxes of `other` into `volume`, both (C, H, W, D), in place."""
    for box in boxes:
        _inside(volume, box)[:] = _inside(other, box)


def unit_range(noise: Array) -> Array:
    """Smallest value to 0, largest to 1. Deviation: a lone voxel becomes 0, the published code divides 0 by 0."""
    low, high = noise.min(), noise.max()
    return (noise - low) / max(high - low, 1e-12)


def _inside(volume: Array, box: Box) -> Array:
    (h0, w0, d0), (h1, w1, d1) = box
    return volume[:, h0:h1, w0:w1, d0:d1]
