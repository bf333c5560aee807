"""What a scan is once it is in memory: intensities, where they lie in the patient, and what was done to read them.

Dims: X Y Z voxels, along right, anterior, superior for `Volume.hu`; along the axes of the file for the native grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mm.medical.volumes.orientation import axis_codes, from_ras, spacing_of, to_ras

Unit = Literal["HU", "grey", "unknown"]
"""Hounsfield units; grey values 0..255; or whatever the scanner wrote (MR)."""


@dataclass(frozen=True)
class Provenance:
    """Where a volume came from, without anything that names a person."""

    format: str
    """"NIfTI", "DICOM", or "array"."""
    source: str
    """Hash of the file or folder name: equal names give equal hashes, the name itself is not kept."""
    modality: str = "unknown"
    """DICOM modality; NIfTI files carry none."""
    notes: tuple[str, ...] = ()
    """One sentence for everything that was mended or looked odd."""


@dataclass(frozen=True)
class Volume:
    """A scan in RAS order (first axis to the right, second to the front, third upwards).

    Example:
        >>> volume = Volume.from_array(np.zeros((4, 5, 6), np.int16), np.diag([-1.0, 1.0, 2.0, 1.0]))
        >>> volume.native_codes, volume.spacing, volume.to_native(volume.hu).shape
        ('LAS', (1.0, 1.0, 2.0), (4, 5, 6))
    """

    hu: NDArray[Any]
    """Intensities (X, Y, Z), int16 where they are whole numbers, else float32."""
    affine: NDArray[np.float64]
    """Voxel index -> RAS millimetres, (4, 4)."""
    native_shape: tuple[int, int, int]
    """Shape of the grid in the file; of DICOM: columns, rows, slices."""
    native_affine: NDArray[np.float64]
    """Affine of the grid in the file, (4, 4)."""
    unit: Unit = "HU"
    """What the intensities are."""
    provenance: Provenance = field(default_factory=lambda: Provenance("array", ""))
    """Source and notes."""

    @classmethod
    def from_array(
        cls,
        array: NDArray[Any],
        affine: NDArray[Any],
        *,
        unit: Unit = "HU",
        provenance: Provenance | None = None,
    ) -> Volume:
        """Turn an array on its native grid into a volume.

        Args:
            array: Intensities (X, Y, Z) in file order.
            affine: Voxel index -> RAS millimetres, (4, 4).
            unit: What the intensities are.
            provenance: Source and notes.

        Raises:
            ValueError: no 3-D array, or an affine that is singular or not finite.
        """
        if array.ndim != 3 or min(array.shape) < 1:
            raise ValueError(f"a volume has three axes, got an array of shape {tuple(array.shape)}")
        matrix = np.asarray(affine, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
            raise ValueError("the affine must be a finite, invertible 4 x 4 matrix; a zero spacing makes it singular")
        ras, ras_affine = to_ras(array, matrix)
        shape: tuple[int, int, int] = tuple(array.shape)  # type: ignore[assignment]
        return cls(ras, ras_affine, shape, matrix, unit, provenance or Provenance("array", ""))

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between voxel centres along the three axes."""
        return spacing_of(self.affine)

    @property
    def native_codes(self) -> str:
        """Where the axes of the file point, for instance "LPS"."""
        return axis_codes(self.native_affine)

    @property
    def voxel_ml(self) -> float:
        """Millilitres per voxel; right for sheared grids, too."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    def to_native(self, array: NDArray[Any]) -> NDArray[Any]:
        """Bring something on the volume's grid back to the grid of the file: exact, nothing is interpolated.

        Args:
            array: (X, Y, Z), the shape of `hu`.

        Raises:
            ValueError: another shape.
        """
        if tuple(array.shape) != tuple(self.hu.shape):
            raise ValueError(f"expected the volume's shape {tuple(self.hu.shape)}, got {tuple(array.shape)}")
        return from_ras(array, self.native_affine)

    def summary(self) -> dict[str, Any]:
        """Plain data for a report or a log line; holds no name."""
        low, high = (float(value) for value in (self.hu.min(), self.hu.max()))
        return {
            "format": self.provenance.format,
            "source": self.provenance.source,
            "modality": self.provenance.modality,
            "shape": list(self.hu.shape),
            "spacing_mm": [round(value, 5) for value in self.spacing],
            "native_shape": list(self.native_shape),
            "native_axes": self.native_codes,
            "unit": self.unit,
            "minimum": low,
            "maximum": high,
            "notes": list(self.provenance.notes),
        }
