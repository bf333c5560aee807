"""DICOM folders: which files are slices of a scan, and which slices belong together.

A folder of a scanner holds more than one scan: localisers, screenshots, dose reports, the same patient twice. Files are
grouped by series, orientation and size; what is no slice is counted with its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm.extras import require
from mm.medical.volumes.privacy import quiet

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
VOLUMETRIC = ("CT", "MR", "PT", "NM")
"""Modalities whose files are slices with a position."""


@dataclass(frozen=True)
class Slice:
    """One file: where its plane lies. Pixels stay in the file."""

    path: Path
    position: NDArray[np.float64]
    """Centre of the first pixel, LPS millimetres, (3,)."""
    uid: str
    """SOPInstanceUID."""


@dataclass(frozen=True)
class Series:
    """Slices that share series, orientation and size."""

    uid: str
    """SeriesInstanceUID."""
    modality: str
    rows: int
    columns: int
    across: NDArray[np.float64]
    """Unit vector along a row (towards higher columns), LPS, (3,)."""
    down: NDArray[np.float64]
    """Unit vector along a column (towards higher rows), LPS, (3,)."""
    pixel_spacing: tuple[float, float]
    """Millimetres between rows, and between columns, as DICOM orders them."""
    slices: list[Slice] = field(default_factory=list)

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector across the planes, LPS, (3,)."""
        return np.cross(self.across, self.down)

    def describe(self) -> dict[str, Any]:
        """What a person needs to choose; free text of the header is left out, it may name the patient."""
        plane = ("sagittal", "coronal", "axial")[int(np.abs(self.normal).argmax())]
        places = np.unique(np.round([float(s.position @ self.normal) for s in self.slices], 3))
        step = float(np.median(np.diff(places))) if len(places) > 1 else None
        return {
            "modality": self.modality,
            "plane": plane,
            "slices": len(self.slices),
            "rows": self.rows,
            "columns": self.columns,
            "pixel_mm": list(self.pixel_spacing),
            "step_mm": None if step is None else round(step, 4),
        }


class SeveralSeriesError(ValueError):
    """The folder holds more than one series and none was chosen."""

    def __init__(self, message: str, series: list[dict[str, Any]]) -> None:
        super().__init__(message)
        self.series = series
        """One row per series, as `list_series` gives them."""


def read_series(paths: Sequence[Path]) -> tuple[list[Series], Counter[str]]:
    """Group DICOM files, largest series first.

    Args:
        paths: Files of any kind.

    Returns:
        Series, and how many files were left out for which reason.
    """
    pydicom = require("pydicom", extra="medical", purpose="Reading DICOM")
    groups: dict[tuple[Any, ...], Series] = {}
    refused: Counter[str] = Counter()
    for path in paths:
        header = _header(pydicom, path)
        if header is None:
            refused["is not DICOM, or cut off inside its header"] += 1
            continue
        with quiet():
            reason = why_no_slice(header)
            if reason is None:
                _add(groups, header, path)
        if reason is not None:
            refused[reason] += 1
    return sorted(groups.values(), key=lambda s: (-len(s.slices), s.uid)), refused


def _header(pydicom: Any, path: Path) -> Any:
    """Header without pixels, or None."""
    try:
        with quiet():
            header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            return header if "SOPClassUID" in header or "Modality" in header else None
    except Exception:  # pydicom raises a dozen kinds on files that are no DICOM; the count reports each
        return None


def why_no_slice(header: Any) -> str | None:
    """Reason why a file is no slice of a volume, or None."""
    kinds = [str(kind).upper() for kind in header.get("ImageType") or []]
    if "DirectoryRecordSequence" in header:
        return "is a directory record"
    if str(header.get("SOPClassUID", "")).startswith(SECONDARY_CAPTURE):
        return "is a secondary capture (screenshot)"
    if int(header.get("SamplesPerPixel") or 1) != 1:
        return "is a colour (RGB) picture"
    if "LOCALIZER" in kinds:
        return "is a localiser"
    if header.get("Modality") not in VOLUMETRIC or not header.get("Rows"):
        return "holds no CT or MR slice"
    if "PROJECTION IMAGE" in kinds:
        return "is a projection, not a slice"
    if int(header.get("NumberOfFrames") or 1) > 1:
        return "is an enhanced multi-frame file (convert it to one file per slice)"
    if len(header.get("ImagePositionPatient") or []) != 3 or len(header.get("ImageOrientationPatient") or []) != 6:
        return "has no position or orientation"
    return None


def _add(groups: dict[tuple[Any, ...], Series], header: Any, path: Path) -> None:
    directions = np.array([float(v) for v in header.ImageOrientationPatient])
    spacing = [float(v) for v in header.get("PixelSpacing") or (0.0, 0.0)]
    across, down = directions[:3], directions[3:]
    key = (
        str(header.get("SeriesInstanceUID", "")),
        tuple(np.round(directions, 2)),
        int(header.Rows),
        int(header.Columns),
        tuple(np.round(spacing, 4)),
    )
    if key not in groups:
        norm = [float(np.linalg.norm(v)) or 1.0 for v in (across, down)]
        groups[key] = Series(
            key[0], str(header.Modality), key[2], key[3], across / norm[0], down / norm[1], (spacing[0], spacing[1])
        )
    position = np.array([float(v) for v in header.ImagePositionPatient])
    groups[key].slices.append(Slice(path, position, str(header.get("SOPInstanceUID", ""))))


def choose(series: list[Series], refused: Counter[str], wanted: int | str | None, where: str) -> Series:
    """The one series there is, or the one that was asked for.

    Args:
        series: From `read_series`.
        refused: Reasons of the files left out.
        wanted: Number in the list from 1, a SeriesInstanceUID, or None.
        where: Subject of messages.

    Raises:
        ValueError: no series, or no such one.
        SeveralSeriesError: several, and none was asked for.
    """
    if not series:
        reasons = "; ".join(f"{count} x {reason}" for reason, count in refused.most_common()) or "it is empty"
        raise ValueError(f"{where} holds no CT or MR slices: {reasons}")
    if wanted is None and len(series) == 1:
        return series[0]
    rows = [{"series": number, **one.describe()} for number, one in enumerate(series, 1)]
    listed = "; ".join(
        f"{row['series']} = {row['modality']} {row['plane']}, {row['slices']} slices of "
        f"{row['columns']}x{row['rows']}, step {row['step_mm']} mm"
        for row in rows
    )
    if wanted is None:
        raise SeveralSeriesError(f"{where} holds {len(series)} series, choose one with series=NUMBER: {listed}", rows)
    if isinstance(wanted, str) and not wanted.isdigit():
        found = [one for one in series if one.uid == wanted]
        if len(found) == 1:
            return found[0]
        raise ValueError(f"{where} holds {len(found)} groups of slices with that series UID: {listed}")
    if not 1 <= int(wanted) <= len(series):
        raise ValueError(f"{where} has no series {wanted}: {listed}")
    return series[int(wanted) - 1]
