"""Sliding windows over a whole scan in bounded memory: labels come out slab by slab.

The usual way keeps the scores of all classes for the whole scan: 14 classes of 512 x 512 x 400 voxels are 5.9 GB, and
their weights come on top. Here windows are taken in order of their last axis; as soon as no later window reaches a
slice, its scores become labels and their memory is used again.
Dims: B windows, C classes, X Y Z voxels of the scan, W edge of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby, product
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mm.command import progress_wanted
from mm.extras import require

Box = tuple[int, ...]
"""First voxel of a window."""


def sliding_labels(
    image: NDArray[Any] | Tensor,
    predict: Callable[[Tensor], Tensor],
    *,
    window: tuple[int, int, int] = (96, 96, 96),
    overlap: float = 0.25,
    blend: Literal["constant", "gaussian"] = "constant",
    batch: int = 4,
    scale: Callable[[NDArray[Any]], NDArray[np.float32]] | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.uint8]:
    """Most probable class of every voxel.

    Args:
        image: (X, Y, Z), any real dtype; an int16 scan stays int16, only windows become float32.
        predict: (B, 1, *window) float32 -> class scores (B, C, *window), C up to 256.
        window: Voxels per axis of what `predict` takes; a shorter scan is padded with its lowest value.
        overlap: Share of a window that its neighbour covers, 0 <= overlap < 1.
        blend: Weight of a window's voxels: all equal, or falling towards the border.
        batch: Windows per call (B).
        scale: Applied to each window, for instance `WINDOWS["abdomen"]`.
        device: Where `predict` runs; scores are summed on the CPU.
        progress: Called with (done, all) windows; by default a progress bar where a terminal shows one.

    Returns:
        Labels (X, Y, Z), uint8.

    Raises:
        ValueError: sizes that do not fit.
    """
    _check(image, window, overlap, blend, batch)
    shape = tuple(int(edge) for edge in image.shape)
    lowest = float(image.min())
    weight = _weight(window, blend)
    boxes = list(product(*(starts(edge, size, overlap) for edge, size in zip(shape, window, strict=True))))
    boxes.sort(key=lambda box: box[2])  # stable: x and y stay in order
    labels = np.empty(shape, dtype=np.uint8)
    slab = _Slab(shape, window[2], labels)
    layers = [list(group) for _, group in groupby(boxes, key=lambda box: box[2])]
    done = 0
    with _reporter(progress, len(boxes)) as report:
        for layer in layers:
            slab.finish_before(layer[0][2])
            for first in range(0, len(layer), batch):
                part = layer[first : first + batch]
                cut = np.stack([_cut(image, box, window, lowest, scale) for box in part])
                with torch.inference_mode():
                    scores = predict(torch.from_numpy(cut)[:, None].to(device)).float().cpu()
                _check_scores(scores, len(part), window)
                for box, score in zip(part, scores, strict=True):
                    slab.add(box, score * weight if blend == "gaussian" else score)
                done += len(part)
                report(done, len(boxes))
        slab.finish_before(shape[2])
    return labels


def starts(edge: int, size: int, overlap: float) -> list[int]:
    """First voxels of the windows along one axis; the last window ends with the axis.

    Example:
        >>> starts(10, 4, 0.5), starts(3, 4, 0.5)
        ([0, 2, 4, 6], [0])
    """
    if edge <= size:
        return [0]
    step = max(1, int(size * (1 - overlap)))
    places = list(range(0, edge - size, step))
    return [*places, edge - size]


class _Slab:
    """Scores of the slices that windows still add to."""

    def __init__(self, shape: tuple[int, ...], depth: int, labels: NDArray[np.uint8]) -> None:
        self.shape, self.labels = shape, labels
        self.depth = min(depth, shape[2])
        self.first = 0
        self.scores: Tensor | None = None  # (C, X, Y, depth)

    def add(self, box: Box, score: Tensor) -> None:
        if self.scores is None:
            self.scores = torch.zeros(score.shape[0], self.shape[0], self.shape[1], self.depth)
        x, y, z = (
            slice(start, min(start + size, edge))
            for start, size, edge in zip(box, score.shape[1:], self.shape, strict=True)
        )
        wide, high, deep = (part.stop - part.start for part in (x, y, z))
        z = slice(z.start - self.first, z.stop - self.first)
        self.scores[:, x, y, z] += score[:, :wide, :high, :deep]

    def finish_before(self, place: int) -> None:
        """Turn the slices before `place` into labels and move the rest to the front."""
        count = place - self.first
        if self.scores is None or count <= 0:
            return
        self.labels[:, :, self.first : place] = self.scores[..., :count].argmax(0).to(torch.uint8).numpy()
        for offset in range(self.depth - count):  # slice by slice: no second slab in memory
            self.scores[..., offset] = self.scores[..., offset + count]
        self.scores[..., max(0, self.depth - count) :] = 0
        self.first = place


def _cut(
    image: NDArray[Any] | Tensor,
    box: Box,
    window: tuple[int, int, int],
    lowest: float,
    scale: Callable[[NDArray[Any]], NDArray[np.float32]] | None,
) -> NDArray[np.float32]:
    part = np.asarray(image[tuple(slice(start, start + size) for start, size in zip(box, window, strict=True))])
    short = [(0, size - edge) for size, edge in zip(window, part.shape, strict=True)]
    if any(lack for _, lack in short):
        part = np.pad(part, short, constant_values=np.asarray(lowest, part.dtype))
    return scale(part) if scale else part.astype(np.float32)


def _weight(window: tuple[int, int, int], blend: str) -> Tensor:
    tools = require("monai.data.utils", extra="medical", purpose="Sliding windows")
    weight: Tensor = tools.compute_importance_map(window, mode=blend, sigma_scale=0.125, dtype=torch.float32)
    return weight.clamp(min=1e-3)


def _check(image: Any, window: tuple[int, int, int], overlap: float, blend: str, batch: int) -> None:
    if image.ndim != 3:
        raise ValueError(f"a scan has three axes, got shape {tuple(image.shape)}")
    if len(window) != 3 or min(window) < 1 or batch < 1:
        raise ValueError(f"window needs three positive edges and batch must be positive, got {window} and {batch}")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must lie in [0, 1), got {overlap}")
    if blend not in ("constant", "gaussian"):
        raise ValueError(f"blend must be constant or gaussian, got {blend!r}")


def _check_scores(scores: Tensor, count: int, window: tuple[int, int, int]) -> None:
    if scores.ndim != 5 or scores.shape[0] != count or tuple(scores.shape[2:]) != tuple(window):
        raise ValueError(
            f"predict must return scores ({count}, C, {', '.join(map(str, window))}), got {tuple(scores.shape)}"
        )
    if scores.shape[1] > 256:
        raise ValueError(f"labels are 8-bit: at most 256 classes, got {scores.shape[1]}")


@contextmanager
def _reporter(call: Callable[[int, int], None] | None, total: int) -> Iterator[Callable[[int, int], None]]:
    """A caller's function, or a progress bar on a terminal, or nothing."""
    if call is not None or not progress_wanted():
        yield call or (lambda done, total: None)
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("windows", total=total)
        yield lambda done, total: bar.update(task, completed=done)
