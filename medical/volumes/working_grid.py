"""To the grid a network wants, and back: resample, crop to the body, pad; every step can be undone.

MONAI's transforms record what they did; `Prepared.invert` runs the record backwards and then undoes the axis order, so
that a prediction lies on the voxels of the file it came from.
Dims: C channels, X Y Z voxels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mm.extras import require
from mm.medical.volumes.volume import Volume
from mm.medical.volumes.windows import window_named

INVERSE_MODES = {"nearest": "nearest-exact", "linear": "trilinear"}
"""Labels keep their values, maps are smoothed."""


@dataclass(frozen=True)
class Prepared:
    """A scan on the working grid."""

    image: Any
    """MetaTensor (1, X, Y, Z), float32 in 0..1, with the record of its transforms."""
    volume: Volume
    """The scan itself."""
    steps: Any
    """The MONAI transforms."""

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres per voxel of the working grid, as resampling made it."""
        x, y, z = (float(v) for v in np.linalg.norm(np.asarray(self.image.affine)[:3, :3], axis=0))
        return x, y, z

    def invert(self, prediction: Tensor, mode: Literal["nearest", "linear"] = "nearest") -> NDArray[Any]:
        """Bring a prediction to the grid of the file.

        Args:
            prediction: (X, Y, Z) labels, or (C, X, Y, Z) maps, on the working grid.
            mode: "nearest" for labels, "linear" for maps.

        Returns:
            (X, Y, Z) or (C, X, Y, Z) on the native grid, 0 outside the crop; save it with `volume.native_affine`.

        Raises:
            ValueError: another shape or mode.
        """
        flat = self._inverted(prediction, mode)
        native = np.stack([self.volume.to_native(channel) for channel in flat])
        return native if prediction.ndim == 4 else native[0]

    def invert_to_volume(self, prediction: Tensor, mode: Literal["nearest", "linear"] = "nearest") -> NDArray[Any]:
        """As `invert`, on the RAS grid of `volume.hu`."""
        flat = self._inverted(prediction, mode)
        return flat if prediction.ndim == 4 else flat[0]

    def _inverted(self, prediction: Tensor, mode: str) -> NDArray[Any]:
        if mode not in INVERSE_MODES:
            raise ValueError(f"mode must be one of {', '.join(INVERSE_MODES)}, got {mode!r}")
        channels = prediction if prediction.ndim == 4 else prediction[None]
        if tuple(channels.shape[1:]) != tuple(self.image.shape[1:]):
            raise ValueError(
                f"expected the working grid {tuple(self.image.shape[1:])}, got {tuple(prediction.shape[-3:])}"
            )
        data = require("monai.data", extra="medical", purpose="A working grid")
        convert = require("monai.transforms.utils", extra="medical", purpose="A working grid")
        # MONAI pads a crop with 0 in the prediction's own dtype and resamples in float32, exact for labels below 2^24
        plain = channels.as_tensor() if isinstance(channels, data.MetaTensor) else channels
        moved = data.MetaTensor(plain.detach().cpu().float(), affine=self.image.affine)
        record = convert.convert_applied_interp_mode(
            self.image.applied_operations, mode=INVERSE_MODES[mode], align_corners=None
        )
        moved.applied_operations = record
        native = self.steps.inverse(moved)
        array = native.as_tensor().numpy()
        if tuple(array.shape[1:]) != tuple(self.volume.hu.shape):
            raise AssertionError(f"inverted to {array.shape[1:]}, expected {self.volume.hu.shape}")
        return np.rint(array).astype(_label_type(channels)) if mode == "nearest" else array


def _label_type(labels: Tensor) -> Any:
    """Integers stay integers; what was real stays real."""
    if labels.dtype == torch.bool:
        return np.uint8
    return np.float32 if labels.is_floating_point() else np.dtype(str(labels.dtype).removeprefix("torch."))


@dataclass(frozen=True, kw_only=True)
class WorkingGrid:
    """Settings of the way to a network's input."""

    spacing: tuple[float, float, float] | None = (1.5, 1.5, 2.0)
    """Millimetres; None keeps the scan's own. The default is that of VELVET-Med's segmentation. The size is rounded to
    whole voxels over the same extent, so the spacing that results differs by less than half a voxel per axis length."""
    window: str = "abdomen"
    """Intensity window, see `WINDOWS`."""
    crop_body: bool = True
    """Cut away what the window shows as 0 around the body, windowing comes first."""
    margin_mm: float = 10.0
    """Kept around the body."""
    smallest: int = 32
    """Shorter axes are padded evenly with 0 to this many voxels."""

    def __post_init__(self) -> None:
        if self.spacing is not None and not all(np.isfinite(s) and s > 0 for s in self.spacing):
            raise ValueError(f"spacing must be positive millimetres, got {self.spacing}")
        if self.margin_mm < 0 or self.smallest < 1:
            raise ValueError("margin_mm must not be negative and smallest at least 1")
        window_named(self.window)

    def prepare(self, volume: Volume) -> Prepared:
        """Resample, window, crop and pad a scan.

        Raises:
            ValueError: the spacing would give more than 2^31 voxels.
        """
        transforms = require("monai.transforms", extra="medical", purpose="A working grid")
        data = require("monai.data", extra="medical", purpose="A working grid")
        scaled = torch.from_numpy(window_named(self.window)(volume.hu))[None]
        image = data.MetaTensor(scaled, affine=torch.from_numpy(volume.affine))
        # extent stays: voxel edges match, so that nearest neighbours lead back to the voxel they came from
        resize = transforms.Resize(spatial_size=self.size_for(volume), mode="trilinear", align_corners=False)
        image = resize(image)
        steps = [resize]
        if self.crop_body:
            crop = self._crop(transforms, image)
            image = crop(image)
            steps.append(crop)
        pad = transforms.SpatialPad(spatial_size=[max(self.smallest, edge) for edge in image.shape[1:]])
        steps.append(pad)
        return Prepared(pad(image), volume, transforms.Compose(steps))

    def size_for(self, volume: Volume) -> tuple[int, int, int]:
        """Voxels per axis after resampling."""
        spacing = self.spacing or volume.spacing
        edges = [
            max(1, round(edge * own / wanted))
            for edge, own, wanted in zip(volume.hu.shape, volume.spacing, spacing, strict=True)
        ]
        if np.prod([float(edge) for edge in edges]) >= 2**31:
            raise ValueError(
                f"a spacing of {spacing} mm gives {'x'.join(map(str, edges))} voxels: choose a coarser one"
            )
        return edges[0], edges[1], edges[2]

    def _crop(self, transforms: Any, image: Any) -> Any:
        """The box around what is not 0, with a margin; the whole image if all of it is 0."""
        filled = np.asarray(image[0] > 0)
        steps = np.linalg.norm(np.asarray(image.affine)[:3, :3], axis=0)
        starts, ends = [], []
        for axis in range(3):
            found = np.flatnonzero(filled.any(axis=tuple(other for other in range(3) if other != axis)))
            margin = int(np.ceil(self.margin_mm / steps[axis]))
            starts.append(max(0, int(found[0]) - margin) if len(found) else 0)
            ends.append(min(filled.shape[axis], int(found[-1]) + 1 + margin) if len(found) else filled.shape[axis])
        return transforms.SpatialCrop(roi_start=starts, roi_end=ends)
