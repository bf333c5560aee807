"""Pictures of tasks: small views for galleries, and where the sentences of a report look.

Dims: X Y Z voxels, K sentences.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mm.medical.tasks.scan_input import input_window
from mm.medical.volumes.panel import PLANES, plane
from mm.medical.volumes.volume import Volume
from mm.medical.volumes.windows import Window

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMALL = 96
"""Edge of each plane of a small view, pixels."""


def small_view(volume: Volume, window: str | Window | None = None, edge: int = SMALL) -> NDArray[np.uint8]:
    """Middle planes side by side in true proportions, for a gallery, (edge, 3 edge) uint8."""
    chosen = input_window(volume, window)
    largest = max(size * step for size, step in zip(volume.hu.shape, volume.spacing, strict=True))
    out = np.zeros((edge, 3 * edge), dtype=np.uint8)
    for number, (name, (across, along, up, _)) in enumerate(PLANES.items()):
        picture = (chosen(plane(volume.hu, name, volume.hu.shape[across] // 2)) * 255).astype(np.uint8)
        wide, high = (
            max(1, round(edge * volume.hu.shape[axis] * volume.spacing[axis] / largest)) for axis in (along, up)
        )
        rows = np.arange(high) * picture.shape[0] // high
        columns = np.arange(wide) * picture.shape[1] // wide
        top, left = (edge - high) // 2, number * edge + (edge - wide) // 2
        out[top : top + high, left : left + wide] = picture[rows][:, columns]
    return out


def thinned(volume: Volume, largest: int = 160) -> Volume:
    """Every n-th voxel, so that no axis has more than `largest`: a page shows no more, and maps stay small."""
    steps = thinning(volume.hu.shape, largest)
    affine = volume.affine.copy()
    affine[:3, :3] = affine[:3, :3] * [step.step for step in steps]
    return Volume.from_array(volume.hu[steps], affine, unit=volume.unit, provenance=volume.provenance)


def thinning(shape: tuple[int, ...], largest: int = 160) -> tuple[slice, ...]:
    """Which voxels `thinned` keeps; the same slices thin a label map.

    Example:
        >>> thinning((512, 100), 160)
        (slice(None, None, 4), slice(None, None, 1))
    """
    return tuple(slice(None, None, -(-size // largest)) for size in shape)


def png_of_pixels(pixels: NDArray[np.uint8], scale: int = 1) -> bytes:
    """Grey or colour pixels as PNG, enlarged without smoothing."""
    from PIL import Image

    image = Image.fromarray(pixels)
    if scale > 1:
        image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def attention_figure(
    volume: Volume,
    maps: NDArray[np.float32],
    sentences: Sequence[str],
    window: str | Window | None = None,
) -> Figure:
    """Per sentence, the scan and its attention as maximum intensity projections along each axis.

    Every map is stretched over its own range: attention over many regions is nearly even and would look flat.

    Args:
        volume: The scan.
        maps: Attention on the voxels of the scan, (K, X, Y, Z).
        sentences: Texts (K).
        window: Of the scan below.

    Raises:
        ValueError: no sentence, or maps of another shape.
    """
    from matplotlib.figure import Figure

    if len(maps) != len(sentences) or not len(sentences) or maps.shape[1:] != volume.hu.shape:
        raise ValueError(f"need one map of shape {volume.hu.shape} per sentence, got {maps.shape} for {len(sentences)}")
    chosen = input_window(volume, window)
    figure = Figure(figsize=(9, 2.9 * len(sentences)), facecolor="black", layout="constrained")
    table = figure.subplots(len(sentences), 3, squeeze=False)
    projections = {name: chosen(_projected(volume.hu, name)) for name in PLANES}
    for axes, values, sentence in zip(table, maps, sentences, strict=True):
        for axis, name in zip(axes, PLANES, strict=True):
            _draw(axis, projections[name], stretched(_projected(values, name)), volume, name)
        axes[1].set_title(_shortened(sentence), color="0.9", fontsize=9)
    return figure


def stretched(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Over 0..1, from the median (what is below shows nothing) to the highest value."""
    low, high = float(np.median(values)), float(values.max())
    return np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)


def _projected(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Maximum along the axis across a plane, as `plane` shows it."""
    return array.max(axis=PLANES[name][0]).T[::-1, ::-1]


def _draw(axis: Any, below: NDArray[np.float32], above: NDArray[np.float32], volume: Volume, name: str) -> None:
    _, along, up, letters = PLANES[name]
    aspect = volume.spacing[up] / volume.spacing[along]
    axis.imshow(below, cmap="gray", vmin=0, vmax=1, aspect=aspect, interpolation="nearest")
    axis.imshow(above, cmap="inferno", vmin=0, vmax=1, aspect=aspect, alpha=0.65 * above, interpolation="bilinear")
    axis.set_axis_off()
    for letter, (x, y) in zip(letters.split(), ((0.03, 0.5), (0.97, 0.5), (0.5, 0.95), (0.5, 0.05)), strict=True):
        axis.text(x, y, letter, color="#ffd54a", transform=axis.transAxes, ha="center", va="center", fontsize=9)


def _shortened(sentence: str, length: int = 90) -> str:
    return sentence if len(sentence) <= length else sentence[: length - 1].rstrip() + "…"
