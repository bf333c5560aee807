"""`load_volume`: a NIfTI file, a DICOM file or folder, or a zip of either, to one `Volume`."""

from __future__ import annotations

import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mm.medical.volumes.dicom_series import Series, choose, read_series
from mm.medical.volumes.dicom_stack import Missing, stack
from mm.medical.volumes.intensity import Intensity
from mm.medical.volumes.nifti import is_nifti, read_nifti
from mm.medical.volumes.privacy import alias
from mm.medical.volumes.volume import Volume

LARGEST_ZIP = 32 * 2**30
"""Bytes after unpacking; a larger archive is unpacked by hand."""


def load_volume(
    path: str | Path,
    series: int | str | None = None,
    *,
    intensity: Intensity = "hu",
    missing: Missing = "refuse",
) -> Volume:
    """Load one scan, checked, in RAS order.

    Args:
        path: ".nii", ".nii.gz", a DICOM file, a folder of DICOM files (with sub-folders), a folder with one NIfTI file,
            or a ".zip" of these.
        series: Which DICOM series, where there are several: number from `list_series`, or SeriesInstanceUID.
        intensity: "hu" insists on Hounsfield units; "grey" on 8-bit grey values (M3D); "any" checks nothing (MR).
        missing: Missing slices are refused, or filled by "interpolate".

    Returns:
        The scan; `volume.provenance.notes` says what was mended.

    Raises:
        FileNotFoundError: nothing is there.
        SeveralSeriesError: several series and none chosen; the message lists them.
        ValueError: unusable, with the reason. No message holds a file name or a value of the header.
    """
    if missing not in ("refuse", "interpolate"):
        raise ValueError(f"missing must be refuse or interpolate, got {missing!r}")
    with _files(Path(path)) as (files, where):
        source = alias(path)
        scans = [file for file in files if is_nifti(file)]
        if scans:
            if len(scans) > 1:
                raise ValueError(f"{where} holds {len(scans)} NIfTI files: name the one you mean")
            volume = read_nifti(scans[0], intensity)
            return replace(volume, provenance=replace(volume.provenance, source=source))
        found, refused = read_series(files)
        chosen = choose(found, refused, series, where)
        volume = stack(chosen, where, source, intensity, missing)
        return _with_left_out(volume, found, refused)


def list_series(path: str | Path) -> list[dict[str, Any]]:
    """The DICOM series of a folder or zip, one row each, numbered as `load_volume(series=)` wants them.

    Raises:
        FileNotFoundError: nothing is there.
    """
    with _files(Path(path)) as (files, _):
        found, _refused = read_series([file for file in files if not is_nifti(file)])
        return [{"series": number, **one.describe()} for number, one in enumerate(found, 1)]


def _with_left_out(volume: Volume, found: list[Series], refused: Counter[str]) -> Volume:
    notes = [f"{count} files left out: each {reason}" for reason, count in refused.most_common()]
    if len(found) > 1:
        notes.append(f"{len(found) - 1} other series in the same place")
    kept = replace(volume.provenance, notes=(*volume.provenance.notes, *notes))
    return replace(volume, provenance=kept)


@contextmanager
def _files(path: Path) -> Iterator[tuple[list[Path], str]]:
    """Files to look at, and how messages call the place they are in."""
    try:
        if path.is_dir():
            yield sorted(one for one in path.rglob("*") if one.is_file()), f"folder {alias(path)}"
        elif not path.is_file():
            raise FileNotFoundError(
                "there is no such file or folder (its name is not repeated here, it may name a person)"
            )
        elif zipfile.is_zipfile(path):
            with tempfile.TemporaryDirectory(prefix="mm-zip-") as folder:
                yield _unpack(path, Path(folder)), f"archive {alias(path)}"
        else:
            yield [path], f"file {alias(path)}"
    except PermissionError:
        raise ValueError(f"permission is denied to read {alias(path)} or a file inside it") from None


def _unpack(path: Path, folder: Path) -> list[Path]:
    """Members under numbered names: paths inside an archive are neither trusted nor kept."""
    with zipfile.ZipFile(path) as archive:
        members = [one for one in archive.infolist() if not one.is_dir()]
        size = sum(one.file_size for one in members)
        if size > LARGEST_ZIP:
            raise ValueError(f"archive {alias(path)} unpacks to {size / 2**30:.0f} GiB: unpack it and name the folder")
        found = []
        for number, member in enumerate(members):
            lower = member.filename.lower()
            ending = ".nii.gz" if lower.endswith(".nii.gz") else ".nii" if lower.endswith(".nii") else ""
            target = folder / f"{number:06d}{ending}"
            try:
                with archive.open(member) as packed, target.open("wb") as unpacked:
                    while block := packed.read(2**20):
                        unpacked.write(block)
            except (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError):
                raise ValueError(f"archive {alias(path)} is damaged or protected by a password") from None
            found.append(target)
    return found
