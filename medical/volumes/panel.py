"""A scan in three planes with its orientation letters, and a label map over it with millilitres.

Radiological view: the patient's right is on the left of axial and coronal pictures.
Dims: X Y Z voxels, to the right, to the front, upwards.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mm.medical.volumes.labels import Names, label_volumes
from mm.medical.volumes.volume import Volume
from mm.medical.volumes.windows import Window, window_named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLANES = {
    "axial": (2, 0, 1, "R L A P"),
    "coronal": (1, 0, 2, "R L S I"),
    "sagittal": (0, 1, 2, "A P S I"),
}
"""Plane -> axis across it, axis along its width, axis along its height, letters at left, right, top, bottom."""
COLOURS = (
    "#e6194b", "#3cb44b", "#4363d8", "#f58231", "#42d4f4", "#f032e6", "#ffe119", "#911eb4", "#bfef45", "#fabed4",
    "#469990", "#9a6324",
)  # fmt: skip


def plane(array: NDArray[Any], name: str, index: int) -> NDArray[Any]:
    """One slice of a RAS array as a picture: first row at the top, first column at the viewer's left, (H, W)."""
    across, _, _, _ = PLANES[name]
    # of the two axes left, the second points up (A or S) and the first to R or A, both shown from the left
    return np.take(array, index, axis=across).T[::-1, ::-1]


def three_planes(
    volume: Volume,
    *,
    at: tuple[int, int, int] | None = None,
    window: str | Window | None = None,
    labels: NDArray[Any] | None = None,
    names: Names | None = None,
    contour: bool = False,
) -> Figure:
    """Axial, coronal and sagittal picture of a scan.

    Args:
        volume: The scan.
        at: Voxel that the three planes share; default: the middle, of the labels if there are any.
        window: Preset or range; default: soft tissue, for grey data "grey", for unknown units the 1..99 % range.
        labels: Label map on the grid of `volume.hu`, 0 is background.
        names: Names of the labels.
        contour: Outlines instead of filled labels.

    Raises:
        ValueError: labels of another shape, a voxel outside, or an unknown preset.
    """
    from matplotlib.figure import Figure

    if labels is not None and labels.shape != volume.hu.shape:
        raise ValueError(f"labels must have the volume's shape {volume.hu.shape}, got {labels.shape}")
    at = at or middle(volume, labels)
    if any(not 0 <= place < edge for place, edge in zip(at, volume.hu.shape, strict=True)):
        raise ValueError(f"voxel {at} lies outside the volume {volume.hu.shape}")
    chosen = _window(volume, window)
    rows = [] if labels is None else label_volumes(labels, volume.affine, names)
    figure = Figure(figsize=(12, 4.6), facecolor="black", layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, name in zip(axes, PLANES, strict=True):
        _draw(axis, volume, name, at, chosen)
        if labels is not None:
            _overlay(axis, plane(labels, name, at[PLANES[name][0]]), rows, _aspect(volume, name), contour)
    if rows:
        _legend(figure, rows)
    unit = f" {volume.unit}" if volume.unit == "HU" else ""
    figure.suptitle(f"{chosen.low:g} to {chosen.high:g}{unit} · research use only", color="0.7", fontsize=9)
    return figure


def save_panel(path: Path | str, volume: Volume, **options: Any) -> None:
    """Write `three_planes(volume, **options)` as a PNG or another picture; the ending chooses."""
    three_planes(volume, **options).savefig(path, dpi=110)


def middle(volume: Volume, labels: NDArray[Any] | None) -> tuple[int, int, int]:
    """Middle of the scan, or the slice of each axis that shows most labelled voxels."""
    if labels is None or not labels.any():
        x, y, z = (edge // 2 for edge in volume.hu.shape)
    else:
        marked = labels > 0
        x, y, z = (int(marked.sum(axis=tuple(o for o in range(3) if o != axis)).argmax()) for axis in range(3))
    return x, y, z


def _window(volume: Volume, window: str | Window | None) -> Window:
    if window is not None:
        return window_named(window)
    if volume.unit == "HU":
        return window_named("soft_tissue")
    if volume.unit == "grey":
        return window_named("grey")
    low, high = (float(v) for v in np.percentile(volume.hu, (1, 99)))
    return Window(low, high if high > low else low + 1)


def _aspect(volume: Volume, name: str) -> float:
    """Height of a voxel over its width."""
    _, along, up, _ = PLANES[name]
    return volume.spacing[up] / volume.spacing[along]


def _draw(axis: Any, volume: Volume, name: str, at: tuple[int, int, int], window: Window) -> None:
    across, _, _, letters = PLANES[name]
    picture = window(plane(volume.hu, name, at[across]))
    axis.imshow(picture, cmap="gray", vmin=0, vmax=1, aspect=_aspect(volume, name), interpolation="nearest")
    axis.set_axis_off()
    axis.set_title(f"{name} {at[across] + 1}/{volume.hu.shape[across]}", color="0.8", fontsize=10)
    for letter, (x, y) in zip(letters.split(), ((0.03, 0.5), (0.97, 0.5), (0.5, 0.96), (0.5, 0.04)), strict=True):
        axis.text(x, y, letter, color="#ffd54a", transform=axis.transAxes, ha="center", va="center", fontsize=12)


def _overlay(axis: Any, picture: NDArray[Any], rows: list[dict[str, Any]], aspect: float, contour: bool) -> None:
    from matplotlib.colors import to_rgb

    colour = np.zeros((*picture.shape, 4))
    for number, row in enumerate(rows):
        mask = picture == row["label"]
        if contour:
            inner = np.pad(mask, 1)
            inner = inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
            mask = mask & ~inner
        colour[mask] = (*to_rgb(COLOURS[number % len(COLOURS)]), 1.0 if contour else 0.4)
    axis.imshow(colour, aspect=aspect, interpolation="nearest")


def _legend(figure: Figure, rows: list[dict[str, Any]]) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(color=COLOURS[number % len(COLOURS)], label=f"{row['name']} {row['ml']:.1f} ml")
        for number, row in enumerate(rows)
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(6, len(handles)), frameon=False, labelcolor="0.85"
    )
