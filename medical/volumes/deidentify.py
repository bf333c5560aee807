"""De-identification of DICOM and NIfTI files, with a report of what was changed. An aid; compliance is not claimed.

Everything that links files of one patient is replaced by a keyed value: the same patient keeps one pseudonym, one date
shift and one set of UIDs within a run. The key is drawn anew and forgotten, unless the caller keeps one.

Source: DICOM PS3.15 Annex E, Basic Profile. Deviation: free text is removed unless it is on a list, times are emptied.
"""

from __future__ import annotations

import hmac
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from gzip import GzipFile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm.checkpoint import write_aside
from mm.extras import require
from mm.medical.volumes.deidentify_rules import STANDARD_UIDS, action_for
from mm.medical.volumes.dicom_series import SECONDARY_CAPTURE
from mm.medical.volumes.nifti import is_nifti
from mm.medical.volumes.privacy import quiet

METHOD = "mm: text removed unless listed; keyed UIDs; shifted dates"
LARGEST_SHIFT_DAYS = 3650
HEAD = ("HEAD", "BRAIN", "SKULL", "FACE", "NECK", "HEADNECK", "SINUS", "ORBIT")


@dataclass
class DeidentificationReport:
    """What was done; holds no value of any header."""

    written: int = 0
    """Files written."""
    refused: Counter[str] = field(default_factory=Counter)
    """Reason -> files that were not written."""
    changes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(Element, action) -> how often."""
    warnings: list[str] = field(default_factory=list)
    """What a person must still look at."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        rows = [{"element": e, "action": a, "times": n} for (e, a), n in sorted(self.changes.items())]
        return {
            "written": self.written,
            "refused": dict(self.refused),
            "changes": rows,
            "warnings": list(dict.fromkeys(self.warnings)),
            "method": METHOD,
            "note": "an aid to de-identification; check the result before you pass it on",
        }


class Deidentifier:
    """Writes cleaned copies under new names.

    Args:
        key: Secret of pseudonyms, UIDs and date shifts; runs with one key give the same values. Default: drawn anew and
            never stored.
        allow_burned_in: Write secondary captures, ultrasound and pictures marked as holding text, too.
        mask: For NIfTI: stored values (X, Y, Z) -> the same shape, for instance with a face removed.
    """

    def __init__(
        self,
        *,
        key: bytes | None = None,
        allow_burned_in: bool = False,
        mask: Callable[[NDArray[Any]], NDArray[Any]] | None = None,
    ) -> None:
        if key is not None and len(key) < 16:
            raise ValueError(f"the key needs 16 bytes or more, got {len(key)}: short keys can be guessed")
        self._key = key or secrets.token_bytes(32)
        self.allow_burned_in = allow_burned_in
        self.mask = mask

    def run(self, source: str | Path, target: str | Path) -> DeidentificationReport:
        """Clean a file or every file of a folder.

        Args:
            source: NIfTI or DICOM file, or a folder of them.
            target: Folder to write into; must be empty or new. Files get hashed names.

        Raises:
            FileNotFoundError: nothing at `source`.
            ValueError: `target` is not empty, or lies inside `source`.
        """
        source, target = Path(source), Path(target)
        files = _files(source)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ValueError("the output folder is not empty: name a new one, so that no other file is taken for clean")
        if source.is_dir() and target.resolve().is_relative_to(source.resolve()):
            raise ValueError("the output folder lies inside the input: name one outside")
        target.mkdir(parents=True, exist_ok=True)
        report = DeidentificationReport()
        for path in files:
            (self._nifti if is_nifti(path) else self._dicom)(path, target, report)
        return report

    # --- keyed values ------------------------------------------------------------------------------------------------

    def _digest(self, kind: str, value: str) -> int:
        return int.from_bytes(hmac.digest(self._key, f"{kind}:{value}".encode(), "sha256")[:16], "big")

    def uid(self, value: str) -> str:
        """A UID that stands for another; those of the standard stay."""
        return value if value.startswith(STANDARD_UIDS) or not value else f"2.25.{self._digest('uid', value)}"

    def pseudonym(self, patient: str) -> str:
        """A name for a patient id."""
        return f"P{self._digest('patient', patient):032x}"[:13].upper()

    def shift_days(self, patient: str) -> int:
        """Days that a patient's dates move back, 1 .. `LARGEST_SHIFT_DAYS`."""
        return 1 + self._digest("dates", patient) % LARGEST_SHIFT_DAYS

    # --- DICOM -------------------------------------------------------------------------------------------------------

    def _dicom(self, path: Path, target: Path, report: DeidentificationReport) -> None:
        pydicom = require("pydicom", extra="medical", purpose="De-identifying DICOM")
        try:
            with quiet():
                dataset = pydicom.dcmread(path, force=True)
                if "SOPClassUID" not in dataset:
                    report.refused["not DICOM or NIfTI, or without a SOP class"] += 1
                    return
                reason = None if self.allow_burned_in else _burned_in(dataset)
                if reason is not None:
                    report.refused[reason] += 1
                    return
                _warn(dataset, report)
                patient = str(dataset.get("PatientID") or dataset.get("PatientName") or "")
                self._clean(dataset, patient, report)
                self._mark(pydicom, dataset)
                name = f"{self._digest('file', str(dataset.get('SOPInstanceUID', path))):032x}.dcm"
                with write_aside(target / name) as partial:
                    dataset.save_as(partial, enforce_file_format=True)
        except Exception:  # pydicom's own errors quote values; one file must not stop or leak
            report.refused["could not be read or written as valid DICOM"] += 1
            return
        report.written += 1

    def _clean(self, dataset: Any, patient: str, report: DeidentificationReport) -> None:
        for element in list(dataset):
            tag, keyword = element.tag, element.keyword
            action = action_for(keyword, element.VR, tag.is_private, tag.group)
            if action == "keep":
                continue
            if action == "descend":
                for item in element.value:
                    self._clean(item, patient, report)
                continue
            changed = self._apply(dataset, element, action, patient)
            if changed:
                report.changes[(keyword or ("private element" if tag.is_private else "unknown element"), action)] += 1

    def _apply(self, dataset: Any, element: Any, action: str, patient: str) -> bool:
        """Change one element; False if nothing was to change."""
        if action == "remove":
            del dataset[element.tag]
            return True
        if action == "pseudonym":
            element.value = self.pseudonym(patient)
            return True
        before = element.value
        if action == "empty":
            element.value = ""
        elif action == "remap":
            many = before if isinstance(before, list | tuple) or hasattr(before, "append") else [before]
            uids = [self.uid(str(one)) for one in many if one is not None]
            element.value = uids if len(uids) > 1 else (uids[0] if uids else "")
        elif action == "shift":
            many = before if hasattr(before, "append") else [before]
            dates = [_shifted(str(one), self.shift_days(patient)) for one in many if one]
            element.value = dates if len(dates) > 1 else (dates[0] if dates else "")
        return bool(str(before or "")) and str(element.value) != str(before)

    def _mark(self, pydicom: Any, dataset: Any) -> None:
        """Say what was done, and rebuild the file's own header, which names machines and networks."""
        dataset.PatientIdentityRemoved = "YES"
        dataset.DeidentificationMethod = METHOD
        dataset.LongitudinalTemporalInformationModified = "MODIFIED"
        meta = pydicom.dataset.FileMetaDataset()
        old = getattr(dataset, "file_meta", None)
        default = pydicom.uid.ImplicitVRLittleEndian
        meta.TransferSyntaxUID = getattr(old, "TransferSyntaxUID", None) or default
        meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID") or self.uid(secrets.token_hex(8))
        dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
        dataset.file_meta = meta
        dataset.preamble = b"\0" * 128

    # --- NIfTI -------------------------------------------------------------------------------------------------------

    def _nifti(self, path: Path, target: Path, report: DeidentificationReport) -> None:
        nibabel = require("nibabel", extra="medical", purpose="De-identifying NIfTI")
        try:
            with quiet():
                image = nibabel.load(path)
                raw = np.asanyarray(image.dataobj.get_unscaled()) if isinstance(image, nibabel.Nifti1Image) else None
        except Exception:  # nibabel's errors quote the file name
            raw = None
        if raw is None:
            report.refused["could not be read as NIfTI"] += 1
            return
        if self.mask is not None:
            raw = self._masked(raw, report)
        header = _clean_header(image, report)
        ending = ".nii.gz" if path.name.lower().endswith(".gz") else ".nii"
        with write_aside(target / f"{self._digest('file', path.name):032x}{ending}") as partial:
            _write_raw(header, raw, partial, packed=ending == ".nii.gz")
        report.written += 1
        report.changes[("file name", "pseudonym")] += 1
        report.warnings.append("NIfTI files don't say which body part they show: a head scan can show a face")
        if path.with_name(path.name.split(".nii")[0] + ".json").is_file():
            report.warnings.append("side-car JSON files were not copied: their free text can't be checked")

    def _masked(self, raw: NDArray[Any], report: DeidentificationReport) -> NDArray[Any]:
        assert self.mask is not None
        masked = np.asarray(self.mask(raw))
        if masked.shape != raw.shape:
            raise ValueError("the mask function changed the shape")
        report.changes[("voxels", "mask")] += 1
        return masked.astype(raw.dtype)


def _clean_header(image: Any, report: DeidentificationReport) -> Any:
    """A copy of the header without free text and extensions; geometry and scaling stay."""
    header = image.header.copy()
    for name in ("descrip", "aux_file", "db_name", "intent_name"):
        if name not in header:  # NIfTI-2 has no db_name
            continue
        if bytes(header[name].item()).strip(b"\0 "):
            report.changes[(name, "empty")] += 1
        header[name] = b""
    if header.extensions:
        report.changes[("header extension", "remove")] += len(header.extensions)
        header.extensions.clear()
    header.set_slope_inter(image.dataobj.slope, image.dataobj.inter)
    header["vox_offset"] = header.sizeof_hdr + 4  # four bytes say: no extension
    return header


def _write_raw(header: Any, raw: NDArray[Any], path: Path, *, packed: bool) -> None:
    """Stored values as they are: writing through the scaling would round them anew."""
    content = header.binaryblock + b"\0" * 4 + raw.astype(header.get_data_dtype()).tobytes(order="F")
    with path.open("wb") as file:
        if packed:  # no name and no time in the gzip header
            with GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as stream:
                stream.write(content)
        else:
            file.write(content)


def _files(source: Path) -> Sequence[Path]:
    if source.is_dir():
        return sorted(one for one in source.rglob("*") if one.is_file() and one.name != "DICOMDIR")
    if not source.is_file():
        raise FileNotFoundError("there is no such file or folder (its name is not repeated here, it may name a person)")
    return [source]


def _shifted(value: str, days: int) -> str:
    """A DICOM date or date-time moved back; what is no date becomes empty."""
    try:
        moved = datetime.strptime(value[:8], "%Y%m%d") - timedelta(days=days)
    except ValueError:
        return ""
    return moved.strftime("%Y%m%d")


def _burned_in(dataset: Any) -> str | None:
    """Reason to expect text in the pixels."""
    if str(dataset.get("BurnedInAnnotation", "NO")).upper() == "YES":
        return "marked as holding text in the picture (BurnedInAnnotation)"
    if str(dataset.SOPClassUID).startswith(SECONDARY_CAPTURE):
        return "secondary capture: screenshots usually show the name"
    if dataset.get("Modality") == "US":
        return "ultrasound: pictures usually show the name"
    return None


def _warn(dataset: Any, report: DeidentificationReport) -> None:
    part = str(dataset.get("BodyPartExamined", "")).upper()
    if part in HEAD:
        report.warnings.append("head scans: the surface of the face can be rendered from the voxels; mask it")
    if "BurnedInAnnotation" not in dataset:
        report.warnings.append("some files don't say whether text is burned in: look at the pictures")
