"""Small scans as files: an oblique NIfTI and DICOM series, with a patient whose name must never show up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")

from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian  # noqa: E402

NAME = "Hovercraft^Eelina"
SECRETS = ("Hovercraft", "Eelina", "MRN77123", "19610203", "St. Elsewhere", "Dr^Who", "planted note", "ACC4711")


def ct_slice(number: int, **changes: Any) -> Dataset:
    """Slice `number` of an axial scan, 2.5 mm apart, with everything a hospital writes into it."""
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, f"1.2.3.4.{number}"
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.3.5"
    data.PatientName, data.PatientID, data.PatientBirthDate = NAME, "MRN77123", "19610203"
    data.InstitutionName, data.ReferringPhysicianName, data.AccessionNumber = "St. Elsewhere", "Dr^Who", "ACC4711"
    data.StudyDescription, data.StudyDate, data.StudyTime = f"CT of {NAME}", "20210304", "101112"
    data.ImageType, data.Modality = ["ORIGINAL", "PRIMARY", "AXIAL"], "CT"
    data.add_new(0x00091001, "LO", "planted note")
    data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-10, -20, 2.5 * number]
    data.PixelSpacing, data.SliceThickness = [0.5, 0.75], 2.5  # rows, columns
    data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = 6, 5, 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation, data.InstanceNumber = 15, 0, 100 - number
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    data.PixelData = stored(number).tobytes()
    for name, value in changes.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    return data


def stored(number: int) -> np.ndarray:
    """Pixels (row, column) before slope and intercept: HU = 100 number + 10 row + column - 900."""
    row, column = np.mgrid[:6, :5]
    return (124 + 100 * number + 10 * row + column).astype("<u2")


def write(data: Dataset, path: Path) -> None:
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.save_as(path, enforce_file_format=True)


@pytest.fixture()
def folder(tmp_path):
    """A folder named like the patient; `folder(slices)` fills it."""
    place = tmp_path / "Hovercraft_Eelina"
    place.mkdir()

    def fill(slices: list[Dataset]) -> Path:
        for number, data in enumerate(slices):
            write(data, place / f"Hovercraft_{(number * 7) % 11:02d}_{number}.dcm")  # names in no useful order
        return place

    return fill


def oblique() -> np.ndarray:
    """Turned about two axes, mirrored, 0.9 x 0.7 x 3 mm, axes in the order of a coronal scan."""
    angle, tilt = np.deg2rad(20), np.deg2rad(12)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    lean = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    order = np.array([[-1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]])
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ lean @ order @ np.diag([0.9, 0.7, 3.0])
    matrix[:3, 3] = [31.0, -17.5, 205.0]
    return matrix
