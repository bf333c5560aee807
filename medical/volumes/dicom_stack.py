"""One DICOM series to one array: slices ordered by where they lie, gaps and doubles found, tilt kept in the affine.

Source: DICOM PS3.3 C.7.6.2 (image plane) and C.7.6.16 (slope and intercept).
Dims: K slices, R rows, C columns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mm.extras import require
from mm.medical.volumes.dicom_series import Series, Slice
from mm.medical.volumes.intensity import PADDING, Intensity, check_intensities
from mm.medical.volumes.nifti import compact
from mm.medical.volumes.privacy import quiet
from mm.medical.volumes.volume import Provenance, Volume

Missing = Literal["refuse", "interpolate"]
STEP_TOLERANCE = 0.05
"""Share of the slice step by which steps may differ."""
SAME_PLACE_MM = 0.01
TILT_DEG = 0.5
"""From this angle between step and slice normal on, the gantry was tilted."""
MOST_FILLED = 0.25
"""Largest share of slices that interpolation may add."""
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def stack(series: Series, where: str, source: str, intensity: Intensity, missing: Missing) -> Volume:
    """Read the pixels of a series.

    Args:
        series: Slices in any order.
        where: Subject of messages.
        source: Alias for the provenance.
        intensity: What the values must be; MR is never in HU and is not checked.
        missing: What to do about missing slices.

    Raises:
        ValueError: fewer than two slices, doubles, gaps, spacing of zero, undecodable or other intensities.
    """
    if min(series.pixel_spacing) <= 0 or not np.isfinite(series.pixel_spacing).all():
        raise ValueError(f"{where} has a pixel spacing of zero or none: no volume can be built from it")
    notes: list[str] = []
    slices = _without_doubles(series, where, notes)
    if len(slices) < 2:
        raise ValueError(f"{where} holds {len(slices)} slice; a volume needs two or more")
    steps = np.diff([float(one.position @ series.normal) for one in slices])
    counts = _steps(steps, where, missing)
    affine = _affine(series, slices, int(counts.sum()), notes)
    planes = [_pixels(one.path, where) for one in slices]
    array = _joined(planes, counts, notes)
    try:
        checked, unit, doubts = check_intensities(array, intensity if series.modality == "CT" else "any")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    provenance = Provenance("DICOM", source, series.modality, (*notes, *doubts))
    return Volume.from_array(checked, affine, unit=unit, provenance=provenance)


def _without_doubles(series: Series, where: str, notes: list[str]) -> list[Slice]:
    """Slices by place; exact copies are dropped, different pictures of one place refused."""
    ordered = sorted(series.slices, key=lambda one: (float(one.position @ series.normal), one.uid))
    kept: list[Slice] = []
    copies = 0
    for one in ordered:
        if kept and abs(float((one.position - kept[-1].position) @ series.normal)) < SAME_PLACE_MM:
            before, after = _pixels(kept[-1].path, where), _pixels(one.path, where)
            if not np.array_equal(before, after):
                raise ValueError(
                    f"{where} shows one place twice with different pictures (phases or times in one series): "
                    "give it one phase only"
                )
            copies += 1
        else:
            kept.append(one)
    if copies:
        notes.append(f"{copies} duplicate slices with equal pixels were dropped")
    return kept


def _steps(steps: NDArray[np.float64], where: str, missing: Missing) -> NDArray[np.int64]:
    """How many steps of the usual size lie between neighbours, (K - 1,)."""
    usual = float(np.median(steps))
    counts = np.rint(steps / usual).astype(np.int64)
    if (counts < 1).any() or (np.abs(steps - counts * usual) > STEP_TOLERANCE * usual * counts).any():
        raise ValueError(
            f"{where} has uneven slice distances, {steps.min():.2f} to {steps.max():.2f} mm: choose one even part"
        )
    lacking = int((counts - 1).sum())
    if lacking > MOST_FILLED * len(counts):
        raise ValueError(f"{where} lacks {lacking} slices of {int(counts.sum()) + 1}, too many to fill: copy it again")
    if lacking and missing == "refuse":
        raise ValueError(
            f"{where} lacks {lacking} slices in {int((counts > 1).sum())} places (usual step {usual:.2f} mm): copy it "
            "again, or fill them with missing='interpolate'"
        )
    return counts


def _affine(series: Series, slices: list[Slice], steps: int, notes: list[str]) -> NDArray[np.float64]:
    """(column, row, slice) -> RAS millimetres. A tilted gantry gives a sheared grid: exact, nothing resampled."""
    step = (slices[-1].position - slices[0].position) / steps
    cosine = float(step @ series.normal) / float(np.linalg.norm(step))
    tilt = float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))
    if tilt > TILT_DEG:
        notes.append(f"the gantry was tilted by {tilt:.1f} degrees: the affine is sheared, positions in mm stay exact")
    lps = np.eye(4)
    lps[:3, 0] = series.across * series.pixel_spacing[1]
    lps[:3, 1] = series.down * series.pixel_spacing[0]
    lps[:3, 2] = step
    lps[:3, 3] = slices[0].position
    return LPS_TO_RAS @ lps


def _pixels(path: Path, where: str) -> NDArray[Any]:
    """Intensities of one file after slope and intercept, (R, C); outside the field of view -1024 for CT."""
    pydicom = require("pydicom", extra="medical", purpose="Reading DICOM")
    try:
        with quiet():
            dataset = pydicom.dcmread(path, force=True)
            _require_codec(dataset, pydicom)
            raw = dataset.pixel_array
            slope = float(1 if dataset.get("RescaleSlope") is None else dataset.RescaleSlope)
            intercept = float(0 if dataset.get("RescaleIntercept") is None else dataset.RescaleIntercept)
            outside = dataset.get("PixelPaddingValue")
            outside = None if outside is None else int(outside)
    except _MissingCodecError as error:
        raise ValueError(f"{where} is compressed as {error}: pip install pylibjpeg[all] python-gdcm") from None
    except Exception:  # decoders raise their own kinds, and quote the file
        raise ValueError(f"{where} holds a slice whose pixels can't be decoded (cut off or damaged)") from None
    plane = compact(raw, slope, intercept)
    if outside is not None and dataset.get("Modality") == "CT" and (raw == outside).any():
        plane = np.where(raw == outside, np.asarray(PADDING, plane.dtype), plane)
    return plane


class _MissingCodecError(Exception):
    """No installed plug-in decodes the syntax."""


def _require_codec(dataset: Any, pydicom: Any) -> None:
    """Something must decode the transfer syntax; a file without one is read as the standard's default."""
    meta = getattr(dataset, "file_meta", None)
    syntax = getattr(meta, "TransferSyntaxUID", None)
    if syntax is None:
        dataset.file_meta = meta or pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = syntax = pydicom.uid.ImplicitVRLittleEndian
    if syntax.is_compressed and syntax.is_encapsulated:
        try:
            available = pydicom.pixels.get_decoder(syntax).is_available
        except NotImplementedError:
            available = False
        if not available:
            raise _MissingCodecError(syntax.name)


def _joined(planes: list[NDArray[Any]], counts: NDArray[np.int64], notes: list[str]) -> NDArray[Any]:
    """Planes (R, C) -> (C, R, K); missing ones are interpolated between their neighbours."""
    kind = np.int16 if all(plane.dtype == np.int16 for plane in planes) else np.float32
    rows, columns = planes[0].shape
    array = np.empty((columns, rows, int(counts.sum()) + 1), dtype=kind)
    place = 0
    for number, plane in enumerate(planes):
        array[:, :, place] = plane.T
        if number == len(counts):
            break
        for between in range(1, int(counts[number])):
            share = between / float(counts[number])
            mixed = (1 - share) * plane.astype(np.float32) + share * planes[number + 1].astype(np.float32)
            array[:, :, place + between] = (np.rint(mixed) if kind is np.int16 else mixed).T
        place += int(counts[number])
    filled = int((counts - 1).sum())
    if filled:
        notes.append(f"{filled} missing slices were interpolated between their neighbours")
    return array
