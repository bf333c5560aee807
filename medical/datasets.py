"""Readers of the field's folders and tables: Decathlon JSON, nnU-Net, M3D-style and CT-RATE-style CSV.

All give `Record`s; nothing is downloaded. Splits go by patient, see `mm.medical.splits`.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm.data.split import SplitName
from mm.medical.splits import split_by_patient

SCANS = (".nii.gz", ".nii")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One scan and what belongs to it."""

    image: Path
    """Scan, for `mm.medical.load_volume`."""
    patient: str
    """Hash of the patient or study; splits go by it."""
    label: Path | None = None
    """Label map on the grid of the scan."""
    report: str = ""
    """Text of the radiologist."""
    question: str = ""
    """A question about the scan."""
    choices: tuple[str, ...] = ()
    """Answers to choose from."""
    answer: str = ""
    """The right answer, as text."""


def split_records(
    records: Sequence[Record], *, seed: int = 0, fractions: Mapping[str, float] | None = None
) -> dict[SplitName, list[Record]]:
    """Records of each split: all scans of a patient, and all that share a report, stay together.

    Args:
        records: From any reader here.
        seed, fractions: See `mm.medical.splits.split_of_patient`.
    """
    chosen = split_by_patient(
        [record.patient for record in records],
        reports=[record.report for record in records],
        seed=seed,
        fractions=fractions,
    )
    return {name: [records[index] for index in indices] for name, indices in chosen.items()}


def read_decathlon(path: str | Path, section: str = "training") -> list[Record]:
    """Read a list in the format of the Medical Segmentation Decathlon.

    Args:
        path: "dataset.json"; paths inside are relative to its folder.
        section: Key of the list: training, validation or test.

    Raises:
        FileNotFoundError: a named file is missing.
        ValueError: not such a list.
    """
    path = Path(path)
    data = _json(path)
    if not isinstance(data.get(section), list):
        lists = [key for key, value in data.items() if isinstance(value, list)]
        raise ValueError(f"dataset list has no section {section!r}; there are {', '.join(lists) or 'none'}")
    records = []
    for number, entry in enumerate(data[section], 1):
        item = {"image": entry} if isinstance(entry, str) else entry
        if not isinstance(item, dict) or not isinstance(item.get("image"), str):
            raise ValueError(f"entry {number} of {section!r} names no image (several channels per case are not read)")
        image = existing(path.parent, item["image"], f"image of entry {number}")
        label = item.get("label")
        records.append(
            Record(
                image=image,
                label=None if label is None else existing(path.parent, label, f"label of entry {number}"),
                patient=hashed(str(item.get("patient") or stem(image))),
                report=str(item.get("report", "")),
            )
        )
    return records


def read_nnunet(folder: str | Path, section: str = "Tr") -> list[Record]:
    """Read an nnU-Net raw folder: `imagesTr/case_0000.nii.gz`, `labelsTr/case.nii.gz`.

    Args:
        folder: The data set, with `dataset.json`.
        section: "Tr" or "Ts".

    Raises:
        FileNotFoundError: no images, or a label is missing.
        ValueError: several channels per case.
    """
    folder = Path(folder)
    images = sorted(p for p in (folder / f"images{section}").glob("*") if p.name.endswith(SCANS))
    if not images:
        raise FileNotFoundError(f"an nnU-Net folder holds scans in images{section}; none are there")
    labels = folder / f"labels{section}"
    records = []
    for number, image in enumerate(images, 1):
        match = re.fullmatch(r"(.+)_(\d{4})", stem(image))
        if match is None or match[2] != "0000":
            raise ValueError(f"scan {number} of images{section}: names end in _0000 (one channel), this one does not")
        label = next((p for ending in SCANS if (p := labels / f"{match[1]}{ending}").is_file()), None)
        if label is None and labels.is_dir():
            raise FileNotFoundError(f"scan {number} of images{section} has no label in labels{section}")
        records.append(Record(image=image, label=label, patient=hashed(match[1])))
    return records


def label_names(path: str | Path) -> dict[int, str]:
    """Label values and names of a Decathlon or nnU-Net "dataset.json".

    Raises:
        ValueError: no labels, or regions of several values.
    """
    labels = _json(Path(path)).get("labels")
    if not isinstance(labels, dict) or not labels:
        raise ValueError('dataset.json holds no "labels"')
    found = {}
    for one, other in labels.items():
        value, name = (one, other) if str(one).isdigit() else (other, one)
        if isinstance(value, list):
            raise ValueError(f"label {name!r} is a region of several values; only single values are read")
        found[int(value)] = str(name)
    return dict(sorted(found.items()))


def read_m3d(path: str | Path, root: str | Path | None = None) -> list[Record]:
    """Read an M3D-style table: image, question, choices A to D, answer; or image and report.

    Args:
        path: CSV with a header; names are compared without case, spaces and underscores.
        root: Folder that image paths start from; default: that of the table.

    Raises:
        FileNotFoundError: an image is missing.
        ValueError: a column is missing.
    """
    path = Path(path)
    root = Path(root) if root is not None else path.parent
    records = []
    for line, row in rows(path):
        name = needed(row, line, "imagepath", "image")
        letter = row.get("answerchoice", "").strip().upper()
        choices = tuple(value for key in "abcd" if (value := row.get(f"choice{key}", "").strip()))
        answer = row.get("answer", "").strip()
        if not answer and letter in "ABCD" and letter and "ABCD".index(letter) < len(choices):
            answer = choices["ABCD".index(letter)]
        records.append(
            Record(
                image=existing(root, name, f"image of line {line}"),
                patient=hashed(_m3d_study(name)),
                report=row.get("report", row.get("text", row.get("caption", ""))).strip(),
                question=row.get("question", "").strip(),
                choices=choices,
                answer=answer,
            )
        )
    return records


def read_ct_rate(path: str | Path, root: str | Path | None = None) -> list[Record]:
    """Read a CT-RATE-style table: volume name, findings, impression.

    Args:
        path: CSV with the columns VolumeName, Findings_EN and Impressions_EN (or Findings, Impression).
        root: Folder with the volumes, flat or as `train_1/train_1_a/train_1_a_1.nii.gz`; default: that of the table.

    Raises:
        FileNotFoundError: a volume is missing.
        ValueError: a column is missing.
    """
    path = Path(path)
    root = Path(root) if root is not None else path.parent
    records = []
    for line, row in rows(path):
        name = needed(row, line, "volumename", "image")
        base = stem(Path(name))
        parts = base.rsplit("_", 2)  # patient_scan_reconstruction
        nested = f"{parts[0]}/{parts[0]}_{parts[1]}/{name}" if len(parts) == 3 else name
        image = existing(root, nested if (root / nested).is_file() else name, f"volume of line {line}")
        findings = row.get("findingsen", row.get("findings", "")).strip()
        impression = row.get("impressionsen", row.get("impression", row.get("impressions", ""))).strip()
        report = " ".join(part for part in (findings, impression) if part)
        records.append(Record(image=image, patient=hashed(parts[0]), report=report))
    return records


# --- small parts -----------------------------------------------------------------------------------------------------


def hashed(identifier: str) -> str:
    """Stands for a patient id wherever records are shown."""
    return hashlib.sha256(identifier.encode()).hexdigest()[:16]


def stem(path: Path) -> str:
    """Name without ".nii.gz".

    Example:
        >>> stem(Path("case_0000.nii.gz"))
        'case_0000'
    """
    return next((path.name.removesuffix(e) for e in SCANS if path.name.endswith(e)), path.stem)


def _m3d_study(name: str) -> str:
    """Folder of the study: all series of a study share it; a bare file is its own study."""
    folders = Path(name).parts[:-1]
    numbered = [part for part in folders if part.isdigit()]
    return numbered[-1] if numbered else "/".join(folders) or stem(Path(name))


def existing(root: Path, name: str, what: str) -> Path:
    """A path that a list names, once it is known to be there."""
    path = (root / name.replace("\\", "/")).resolve()
    if not path.exists():
        raise FileNotFoundError(f"{what} is not there (names are not repeated here, they may name a person)")
    return path


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path.name if path.name == 'dataset.json' else 'such list'}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError("the data set's list is not JSON") from None
    if not isinstance(data, dict):
        raise ValueError("the data set's list must be a JSON object")
    return data


def rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells by simplified column name; an empty table is an error."""
    if not path.is_file():
        raise FileNotFoundError("there is no such table")
    empty = True
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        for row in reader:
            empty = False
            yield reader.line_num, {_simple(key): value or "" for key, value in row.items() if isinstance(key, str)}
    if empty:
        raise ValueError("the table has no rows")


def _simple(column: str) -> str:
    return re.sub(r"[\s_]+", "", column).casefold()


def needed(row: Mapping[str, str], line: int, *columns: str) -> str:
    """The first of some columns that is filled."""
    for column in columns:
        if row.get(column, "").strip():
            return row[column].strip()
    raise ValueError(f"line {line} has no {' or '.join(columns)}; columns: {', '.join(row)}")
