"""De-identification: planted strings are gone from the bytes, the scan is still the scan."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from mm.medical.volumes import Deidentifier, load_volume, scrub_report
from tests.medical.volumes.conftest import SECRETS, ct_slice

KEY = bytes(range(32))


def nested(number: int) -> Dataset:
    """A slice with names inside sequences, overlays, comments and coded strings, too."""
    item = Dataset()
    item.PersonName, item.CodeMeaning, item.StudyDate = "Eelina", "Hovercraft", "20210304"
    data = ct_slice(number, ImageComments="planted note", BodyPartExamined="HEAD", OperatorsName="Dr^Who")
    data.ReferencedImageSequence = Sequence([item])
    data.PerformedStationAETitle = "St. Elsewhere"
    data.add_new(0x60000022, "LO", "Eelina")
    data.add_new(0x00280106, "US", 1)
    return data


def test_no_planted_string_is_left_in_any_byte_or_name(folder, tmp_path):
    place = folder([nested(n) for n in range(3)])
    before = b"".join(p.read_bytes() for p in place.iterdir())
    assert all(secret.encode() in before for secret in SECRETS)
    report = Deidentifier().run(place, tmp_path / "out")
    assert report.written == 3 and not report.refused
    for path in (tmp_path / "out").iterdir():
        content = path.read_bytes()
        for secret in (*SECRETS, "20210304", "101112", "1.2.3.4"):
            assert secret.encode() not in content, secret
            assert secret not in path.name
    text = json.dumps(report.as_dict())
    assert not any(secret in text for secret in SECRETS)
    changed = {row["element"] for row in report.as_dict()["changes"]}
    assert {"PatientName", "InstitutionName", "private element", "StudyDate", "SOPInstanceUID"} <= changed
    assert any("face" in line for line in report.warnings)


def test_the_scan_stays_the_scan(folder, tmp_path):
    place = folder([nested(n) for n in range(3)])
    Deidentifier().run(place, tmp_path / "out")
    before, after = load_volume(place), load_volume(tmp_path / "out")
    np.testing.assert_array_equal(after.hu, before.hu)
    np.testing.assert_allclose(after.affine, before.affine)


def test_one_patient_stays_one_patient_and_keys_change_everything(folder, tmp_path):
    place = folder([ct_slice(0), ct_slice(1, StudyDate="20210311"), ct_slice(2, PatientID="MRN90000")])

    def cleaned(name, key):
        Deidentifier(key=key).run(place, tmp_path / name)
        return sorted((pydicom.dcmread(p) for p in (tmp_path / name).iterdir()), key=lambda d: d.InstanceNumber)

    third, second, first = cleaned("a", KEY)
    assert first.PatientID == second.PatientID != third.PatientID
    assert first.StudyDate != second.StudyDate and "2021" not in first.StudyDate
    assert first.SeriesInstanceUID == second.SeriesInstanceUID and first.SOPInstanceUID != second.SOPInstanceUID
    assert first.file_meta.MediaStorageSOPInstanceUID == first.SOPInstanceUID
    assert first.PatientIdentityRemoved == "YES" and first.LongitudinalTemporalInformationModified == "MODIFIED"
    assert cleaned("b", KEY)[2].PatientID == first.PatientID
    other = cleaned("c", bytes(32))[2]
    assert other.PatientID != first.PatientID and other.StudyInstanceUID != first.StudyInstanceUID


def test_days_between_scans_of_a_patient_are_kept():
    from datetime import date

    from mm.medical.volumes.deidentify import _shifted

    cleaner = Deidentifier(key=KEY)
    days = cleaner.shift_days("x")
    moved = [date.fromisoformat(_shifted(d, days)) for d in ("20210227", "20210306")]
    assert (moved[1] - moved[0]).days == 7 and (date(2021, 2, 27) - moved[0]).days == days >= 1
    assert _shifted("Hovercraft", days) == ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"BurnedInAnnotation": "YES"}, "BurnedInAnnotation"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "secondary capture"),
        ({"Modality": "US"}, "ultrasound"),
    ],
)
def test_pictures_that_may_show_text_are_not_written(folder, tmp_path, changes, said):
    place = folder([ct_slice(0, **changes)])
    report = Deidentifier().run(place, tmp_path / "out")
    assert report.written == 0 and said in next(iter(report.refused)) and not list((tmp_path / "out").iterdir())
    assert Deidentifier(allow_burned_in=True).run(place, tmp_path / "b").written == 1


def test_nifti_text_goes_and_voxels_stay_bit_equal(tmp_path):
    image = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.diag([2, 3, 4, 1.0]))
    for name in ("descrip", "aux_file", "db_name", "intent_name"):
        image.header[name] = b"Hovercraft"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"planted note"))
    path = tmp_path / "Eelina.nii"
    nibabel.save(image, path)
    path.with_suffix(".json").write_text('{"PatientName": "Eelina"}')
    assert b"planted note" in path.read_bytes() and b"Hovercraft" in path.read_bytes()
    report = Deidentifier().run(path, tmp_path / "out")
    (written,) = (tmp_path / "out").iterdir()
    content = written.read_bytes()
    assert not any(s.encode() in content or s in written.name for s in SECRETS)
    after = nibabel.load(written)
    np.testing.assert_array_equal(np.asanyarray(after.dataobj), np.asanyarray(image.dataobj))
    np.testing.assert_allclose(after.affine, image.affine)
    assert report.changes[("header extension", "remove")] == 1 and any("side-car" in line for line in report.warnings)


def test_a_mask_is_applied_to_the_stored_values(tmp_path):
    path = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.ones((3, 4, 5), np.int16), np.eye(4)), path)
    Deidentifier(mask=lambda raw: np.where(np.indices(raw.shape)[1] > 1, -1, raw)).run(path, tmp_path / "out")
    (written,) = (tmp_path / "out").iterdir()
    assert (np.asanyarray(nibabel.load(written).dataobj)[:, 2:] == -1).all()
    with pytest.raises(ValueError, match="changed the shape"):
        Deidentifier(mask=lambda raw: raw[1:]).run(path, tmp_path / "other")


def test_the_output_never_mixes_with_other_files(folder, tmp_path):
    place = folder([ct_slice(0)])
    with pytest.raises(ValueError, match="inside the input"):
        Deidentifier().run(place, place / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    with pytest.raises(ValueError, match="not empty"):
        Deidentifier().run(place, tmp_path / "full")
    with pytest.raises(ValueError, match="16 bytes"):
        Deidentifier(key=b"short")


def test_report_headers_dates_and_known_names_are_replaced():
    text = (
        "Patient Name: Eelina Hovercraft\nMRN: 77123456\nDOB: 02/03/1961\nReferring physician: Dr. Who\n"
        "Compared with 2021-03-04 and 4 March 2021. Discussed with Dr. Strange by phone (312) 555-0199. "
        "The liver measures 14.5 cm. Eelina tolerated it. Nodule of 3.5 x 4.2 cm in segment 7."
    )
    clean, counts = scrub_report(text, names=["Hovercraft^Eelina"])
    for secret in ("Eelina", "Hovercraft", "77123456", "1961", "2021", "Strange", "555-0199", "Who"):
        assert secret not in clean
    for medicine in ("14.5 cm", "3.5 x 4.2 cm", "segment 7", "The liver measures"):
        assert medicine in clean
    assert counts["known name"] == 3 and counts["header field"] == 4 and counts["date"] >= 2
