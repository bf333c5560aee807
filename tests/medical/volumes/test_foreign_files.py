"""Files that nobody here made: those that pydicom and nibabel ship for their own tests."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from mm.medical.volumes import list_series, load_volume
from tests.medical.volumes.test_dicom import refusal

DICOM = Path(pydicom.__file__).parent / "data" / "test_files"
NIFTI = Path(nibabel.__file__).parent / "tests" / "data"


def need(path: Path) -> Path:
    if not path.exists():
        pytest.skip("this release does not ship the file")
    return path


def test_a_ct_series_loads_in_hu():
    folder = need(DICOM / "dicomdirtests" / "98892001" / "CT5N")
    volume = load_volume(folder)
    assert volume.hu.shape == (16, 16, 5) and volume.spacing == pytest.approx((0.488281, 0.488281, 2.5), abs=1e-5)
    slices = sorted((pydicom.dcmread(p) for p in folder.iterdir()), key=lambda s: s.ImagePositionPatient[2])
    for number, one in enumerate(slices):
        expected = one.pixel_array.astype(int) * int(one.RescaleSlope) + int(one.RescaleIntercept)
        keep = one.pixel_array != one.get("PixelPaddingValue")
        np.testing.assert_array_equal(volume.to_native(volume.hu)[:, :, number].T[keep], expected[keep])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dicomdirtests/77654033/CT2", "too many to fill"),
        ("dicomdirtests/98892001/CT2N", "localiser"),
        ("dicomdirtests/98892003/MR700", "projection"),
        ("dicomdirtests/98892003/MR2", "7 series"),
        ("CT_small.dcm", "1 slice"),
        ("SC_rgb_rle.dcm", "secondary capture"),
        ("rtdose.dcm", "no CT or MR"),
        ("rtplan.dcm", "no CT or MR"),
        ("README.txt", "not DICOM"),
    ],
)
def test_dicom_files_are_refused_with_the_right_reason(name, said):
    assert said in refusal(need(DICOM / name))


def test_every_shipped_dicom_file_is_listed_or_refused_with_a_sentence():
    """No file of theirs may end in another error; values of headers would be in it."""
    listed = list_series(need(DICOM))
    assert len(listed) > 5 and all(row["slices"] >= 1 for row in listed)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("functional.nii", "several volumes"),
        ("example4d.nii.gz", "several volumes"),
        ("example_nifti2.nii.gz", "several volumes"),
        ("standard.nii.gz", "8-bit grey"),
        ("resampled_anat_moved.nii", "NaN"),
        ("row_major.dconn.nii", "not a volume"),
    ],
)
def test_nifti_files_are_refused_with_the_right_reason(name, said):
    assert said in refusal(need(NIFTI / name))


def test_an_mr_scan_loads_unchecked_and_is_doubted_as_ct():
    path = need(NIFTI / "anatomical.nii")
    volume = load_volume(path, intensity="any")
    assert volume.unit == "unknown" and volume.native_codes == "LAS"
    reference = nibabel.as_closest_canonical(nibabel.load(path))
    np.testing.assert_array_equal(volume.hu, np.asanyarray(reference.dataobj))
    np.testing.assert_allclose(volume.affine, reference.affine)
    assert "may be MR" in " ".join(load_volume(path).provenance.notes)
