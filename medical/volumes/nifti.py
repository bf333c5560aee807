"""NIfTI files: one 3-D scan with its affine, checked before anything is believed."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm.extras import require
from mm.medical.volumes.intensity import Intensity, check_intensities
from mm.medical.volumes.privacy import alias, quiet
from mm.medical.volumes.volume import Provenance, Volume

ENDINGS = (".nii", ".nii.gz")
TOLERANCE_MM = 0.5
"""Largest distance between the corners of the grid under the two affines of a header."""


def is_nifti(path: Path) -> bool:
    """By the ending of the name."""
    return path.name.lower().endswith(ENDINGS)


def read_nifti(path: Path, intensity: Intensity = "hu") -> Volume:
    """Read a NIfTI-1 or NIfTI-2 file.

    Args:
        path: ".nii" or ".nii.gz".
        intensity: What the values must be, see `check_intensities`.

    Raises:
        ValueError: cut off, not 3-D, colour, a spacing of zero, contradicting affines, or other intensities.
    """
    nibabel = require("nibabel", extra="medical", purpose="Reading NIfTI")
    where = f"NIfTI file {alias(path)}"
    try:
        with quiet():
            image = nibabel.load(path)
            if not isinstance(image, nibabel.Nifti1Image | nibabel.Nifti1Pair):
                raise ValueError(f"{where} is a {type(image).__name__}, not a volume")
            affine, notes = _affine(image, _stored_spacing(nibabel, image, path), where)
            array, more = _array(image, where)
    except (gzip.BadGzipFile, EOFError, zlib.error, OSError, nibabel.filebasedimages.ImageFileError) as error:
        raise ValueError(f"{where} can't be read: {_cause(error, path)}; copy or export it again") from None
    try:
        array, unit, doubts = check_intensities(array, intensity)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    source = Provenance("NIfTI", alias(path), notes=(*notes, *more, *doubts))
    return Volume.from_array(array, affine, unit=unit, provenance=source)


def _cause(error: Exception, path: Path) -> str:
    """Why, without the message of the reader, which quotes the file name."""
    if isinstance(error, EOFError | zlib.error):
        return "the gzip stream is cut off or damaged"
    if path.name.lower().endswith(".gz") and not isinstance(error, PermissionError) and not _starts_as_gzip(path):
        return "it is not gzip, although its name ends in .gz"
    if isinstance(error, PermissionError):
        return "permission is denied"
    if "Expected" in str(error) and "bytes" in str(error):
        return "it is shorter than its header says (cut off)"
    return "its header is not that of a NIfTI file"


def _starts_as_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _stored_spacing(nibabel: Any, image: Any, path: Path) -> NDArray[np.float64]:
    """Spacing as the file holds it: on loading, nibabel silently turns 0 into 1 mm and drops signs."""
    with nibabel.openers.Opener(path) as file:
        header = type(image.header).from_fileobj(file, check=False)
    return np.asarray(header["pixdim"][1:4], dtype=np.float64)


def _affine(image: Any, zooms: NDArray[np.float64], where: str) -> tuple[NDArray[np.float64], list[str]]:
    """The affine, once spacing and both transforms of the header agree."""
    shape = image.shape
    if not np.isfinite(zooms).all() or (zooms <= 0).any():
        raise ValueError(f"{where} has a spacing of {', '.join(f'{z:g}' for z in zooms)} mm: correct its header")
    sform, s_code = image.get_sform(coded=True)
    qform, q_code = image.get_qform(coded=True)
    notes = []
    if s_code and q_code:
        apart = _corner_distance(sform, qform, shape)
        if not apart <= TOLERANCE_MM:
            raise ValueError(
                f"{where} holds two positions (sform and qform) that lie {apart:.1f} mm apart: clear the wrong one"
            )
    if not s_code and not q_code:
        notes.append("the header gives no orientation: spacing is known, directions are a guess")
    affine = np.asarray(image.affine, dtype=np.float64)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or (lengths <= 0).any() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise ValueError(f"{where} has an affine with a spacing of zero or NaN: correct its header")
    if not np.allclose(lengths, zooms, rtol=0.02):
        notes.append("spacing of affine and header differ; the affine was taken")
    return affine, notes


def _corner_distance(one: NDArray[Any], other: NDArray[Any], shape: tuple[int, ...]) -> float:
    ends = [(0, max(edge - 1, 0)) for edge in (*shape, 1, 1)[:3]]
    corners = np.array([[x, y, z, 1.0] for x in ends[0] for y in ends[1] for z in ends[2]])
    return float(np.linalg.norm((corners @ (one - other).T)[:, :3], axis=1).max())


def _array(image: Any, where: str) -> tuple[NDArray[Any], list[str]]:
    """Intensities after slope and intercept, as small as they fit."""
    kind = image.get_data_dtype()
    if kind.fields is not None:
        raise ValueError(f"{where} holds colour (RGB) voxels, not one intensity per voxel: load the original scan")
    if kind.kind not in "iuf":
        raise ValueError(f"{where} holds {kind} voxels; integers or real numbers are needed")
    notes = []
    shape = image.shape
    raw = np.asanyarray(image.dataobj.get_unscaled())
    real = [edge for edge in shape if edge != 1]
    if len(shape) > 3:
        if len(real) > 3 or (shape[0] != 1 and any(edge != 1 for edge in shape[3:])):
            raise ValueError(
                f"{where} has shape {'x'.join(map(str, shape))}, several volumes in one file: save the one you mean"
            )
        raw = raw.reshape(shape[1:4] if shape[0] == 1 and any(e != 1 for e in shape[3:]) else shape[:3])
        notes.append(f"an axis of length one was dropped from shape {'x'.join(map(str, shape))}")
    if raw.ndim != 3 or min(raw.shape) < 2:
        raise ValueError(
            f"{where} has shape {'x'.join(map(str, shape))}; a volume needs three axes of 2 voxels or more"
        )
    slope, intercept = image.dataobj.slope, image.dataobj.inter
    return compact(raw, float(slope), float(intercept)), notes


def compact(raw: NDArray[Any], slope: float, intercept: float) -> NDArray[Any]:
    """`raw * slope + intercept` as int16 where that is exact, else float32.

    Example:
        >>> compact(np.array([0, 1024], np.uint16), 1.0, -1024.0)
        array([-1024,     0], dtype=int16)
    """
    whole = raw.dtype.kind in "iu" and float(slope).is_integer() and float(intercept).is_integer()
    if whole:
        ends = [int(raw.min()) * int(slope) + int(intercept), int(raw.max()) * int(slope) + int(intercept)]
        if min(ends) >= -32768 and max(ends) <= 32767:
            return (raw.astype(np.int32) * int(slope) + int(intercept)).astype(np.int16)
    scaled = raw.astype(np.float32)
    scaled *= np.float32(slope)
    scaled += np.float32(intercept)
    return scaled


def save_nifti(path: Path | str, array: NDArray[Any], volume: Volume) -> None:
    """Write something on the volume's RAS grid (X, Y, Z) as NIfTI on the grid of the file it came from.

    Args:
        path: ".nii" or ".nii.gz".
        array: Labels or a map, the shape of `volume.hu`.
        volume: The scan.

    Raises:
        ValueError: another shape or ending.
    """
    nibabel = require("nibabel", extra="medical", purpose="Writing NIfTI")
    path = Path(path)
    if not is_nifti(path):
        raise ValueError(f"a NIfTI file ends in {' or '.join(ENDINGS)}")
    native = volume.to_native(array)
    native = native.astype(np.uint8) if native.dtype == np.bool_ else native
    native = native.astype(np.int32) if native.dtype == np.int64 else native
    image = nibabel.Nifti1Image(native, volume.native_affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
