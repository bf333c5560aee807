"""Which scans a path holds, and how each is called: by a hash, because file names carry patients' names."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mm.medical.volumes.nifti import is_nifti

REPORT_ENDINGS = (".txt",)
"""A report beside a scan has the scan's name with this ending."""
DERIVED = ("labels.nii.gz",)
"""Files that our own commands write."""
HEAD = 132
"""Bytes up to the letters DICM of a DICOM file."""


@dataclass(frozen=True)
class ScanCase:
    """One scan of a file or folder."""

    key: str
    """Hash of its place, 12 digits: equal in every run over the same folder."""
    path: Path
    """What `load_volume` reads."""

    @property
    def report_path(self) -> Path | None:
        """The text file beside the scan that has its name, if there is one."""
        name = self.path.name
        stem = next((name.removesuffix(e) for e in (".nii.gz", ".nii", ".zip") if name.lower().endswith(e)), name)
        found = (self.path.parent / f"{stem}{ending}" for ending in REPORT_ENDINGS)
        return next((path for path in found if path.is_file()), None)

    def report(self) -> str:
        """Text of the report beside the scan, or nothing.

        Raises:
            ValueError: it is not UTF-8 text, or holds none.
        """
        if self.report_path is None:
            return ""
        try:
            text = self.report_path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError(f"the report of scan {self.key} is not UTF-8 text: save it as such") from None
        if not re.search(r"\w", text):
            raise ValueError(f"the report of scan {self.key} holds no sentence: write one, or remove the file")
        return text


def find_cases(path: str | Path) -> list[ScanCase]:
    """The scans of a path, in the order of their names.

    A file is one scan. In a folder every NIfTI file and every zip archive is one, and so is every folder that holds
    DICOM files itself; if there is only one such folder and no other scan, the path as a whole is the scan.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a folder without any scan.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError("there is no such file or folder (its name is not repeated here, it may name a person)")
    if path.is_file():
        return [ScanCase(key_of(path.name), path)]
    scans = sorted(set(_scans(path)))
    if not scans:
        raise ValueError("the folder holds no scan: no NIfTI file, no zip archive, no DICOM file")
    if len(scans) == 1 and scans[0].is_dir():
        return [ScanCase(key_of(path.name or "."), path)]
    return [ScanCase(key_of(scan.relative_to(path).as_posix()), scan) for scan in scans]


def key_of(place: str) -> str:
    """Hash of a place inside the folder that was named.

    Example:
        >>> len(key_of("a/b.nii.gz")), key_of("a") == key_of("b")
        (12, False)
    """
    return hashlib.sha256(place.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def _scans(folder: Path) -> Iterator[Path]:
    """NIfTI files, archives, and folders of DICOM files."""
    for file in folder.rglob("*"):
        if not file.is_file() or any(part.startswith(".") for part in file.relative_to(folder).parts):
            continue
        if file.name in DERIVED or file.suffix.lower() in (".txt", ".csv", ".json", ".html", ".md", ".safetensors"):
            continue
        if is_nifti(file) or (file.suffix.lower() == ".zip" and zipfile.is_zipfile(file)):
            yield file
        elif is_dicom(file):
            yield file.parent


def is_dicom(file: Path) -> bool:
    """By the letters behind the preamble, or the ending of the name (old files have no preamble)."""
    if file.suffix.lower() in (".dcm", ".ima", ".dicom"):
        return True
    try:
        with file.open("rb") as opened:
            return opened.read(HEAD)[-4:] == b"DICM"
    except OSError:
        return False
