"""NIfTI: geometry, scaling, and files that must not be believed."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from mm.medical.volumes import Volume, load_volume, save_nifti
from tests.medical.volumes.conftest import oblique
from tests.medical.volumes.test_dicom import refusal


def hu(shape=(5, 6, 7)) -> np.ndarray:
    values = np.random.default_rng(0).integers(-1000, 400, shape).astype(np.int16)
    values[0, 0, :3] = (-1000, 0, 350)
    return values


def saved(path, array, affine, **header):
    image = nibabel.Nifti1Image(array, affine)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def test_an_oblique_scan_comes_in_ras_and_goes_back_bit_equal(tmp_path):
    array, affine = hu(), oblique()
    volume = load_volume(saved(tmp_path / "a.nii.gz", array, affine))
    assert nibabel.aff2axcodes(volume.affine) == ("R", "A", "S") and volume.native_codes != "RAS"
    place = np.linalg.inv(volume.affine) @ affine @ [1, 2, 3, 1]  # one point of the patient, both ways
    assert volume.hu[tuple(np.rint(place[:3]).astype(int))] == array[1, 2, 3]
    save_nifti(tmp_path / "b.nii.gz", volume.hu, volume)
    back = nibabel.load(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(back.dataobj), array)
    np.testing.assert_allclose(back.affine, affine, atol=1e-4)


def test_slope_and_intercept_are_applied_once(tmp_path):
    image = nibabel.Nifti1Image((hu() + 1024).astype(np.int16), np.eye(4))
    image.header.set_slope_inter(1, -1024)
    path = tmp_path / "a.nii"
    nibabel.save(image, path)
    raw = bytearray(path.read_bytes())  # nibabel resets the scaling on saving integers: write it into the header
    raw[112:120] = np.array([1, -1024], "<f4").tobytes()
    path.write_bytes(raw)
    expected = np.asanyarray(nibabel.load(path).dataobj)
    volume = load_volume(path)
    assert volume.hu.dtype == np.int16 and expected.min() < 0
    np.testing.assert_array_equal(volume.to_native(volume.hu), expected)


@pytest.mark.parametrize("shape", [(1, 5, 6, 7), (5, 6, 7, 1)])
def test_an_axis_of_length_one_is_dropped_and_said(tmp_path, shape):
    array = hu()
    volume = load_volume(saved(tmp_path / "a.nii", array.reshape(shape), np.eye(4)))
    np.testing.assert_array_equal(volume.hu, array)
    assert "length one" in volume.provenance.notes[0]


def test_eight_bit_pictures_pass_only_as_such(tmp_path):
    path = saved(tmp_path / "a.nii", np.arange(210, dtype=np.uint8).reshape(5, 6, 7), np.eye(4))
    assert "8-bit grey" in refusal(path)
    assert load_volume(path, intensity="grey").unit == "grey"


def test_scaled_twice_is_refused(tmp_path):
    array = np.where(np.indices((8, 8, 8))[0] < 3, -1000, 40) + np.random.default_rng(0).integers(-20, 20, (8, 8, 8))
    once = saved(tmp_path / "once.nii", array.astype(np.int16), np.eye(4))
    assert load_volume(once).provenance.notes == ()
    assert "applied twice" in refusal(saved(tmp_path / "a.nii", (array - 1024).astype(np.int16), np.eye(4)))
    assert "applied twice" in refusal(saved(tmp_path / "b.nii", (array * 8).astype(np.int16), np.eye(4)))


def test_a_cut_off_gzip_is_refused(tmp_path):
    path = saved(tmp_path / "Eelina.nii.gz", hu((20, 20, 20)), np.eye(4))
    for share in (0.9, 0.5, 0.001):
        short = tmp_path / "Hovercraft.nii.gz"
        short.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        refusal(short)
    assert "cut off" in refusal_of(path, 0.5)
    plain = saved(tmp_path / "a.nii", hu(), np.eye(4))
    assert "cut off" in refusal_of(plain, 0.9)
    (tmp_path / "text.nii.gz").write_bytes(b"no gzip at all")
    assert "not gzip" in refusal(tmp_path / "text.nii.gz")


def refusal_of(path, share):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return refusal(path)


def test_bad_headers_are_refused(tmp_path):
    assert "several volumes" in refusal(saved(tmp_path / "a.nii", hu((4, 4, 4, 3)), np.eye(4)))
    colour = np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert "colour" in refusal(saved(tmp_path / "b.nii", colour, np.eye(4)))
    path = saved(tmp_path / "c.nii", hu(), np.eye(4))
    raw = bytearray(path.read_bytes())
    raw[80:92] = np.array([1, 0, 1], "<f4").tobytes()  # pixdim[1..3]
    path.write_bytes(raw)
    assert "spacing of" in refusal(path)
    bad = hu().astype(np.float32)
    bad[0, 0, 0] = np.nan
    assert "NaN" in refusal(saved(tmp_path / "d.nii", bad, np.eye(4)))


def test_two_positions_that_contradict_are_refused(tmp_path):
    image = nibabel.Nifti1Image(hu(), np.eye(4))
    moved = np.eye(4)
    moved[0, 3] = 4.0
    image.set_sform(np.eye(4), 1)
    image.set_qform(moved, 1)
    nibabel.save(image, tmp_path / "a.nii")
    assert "4.0 mm apart" in refusal(tmp_path / "a.nii")
    image.set_qform(np.eye(4), 1)
    nibabel.save(image, tmp_path / "b.nii")
    load_volume(tmp_path / "b.nii")


def test_a_singular_affine_is_refused():
    with pytest.raises(ValueError, match="invertible"):
        Volume.from_array(hu(), np.diag([1.0, 0.0, 1.0, 1.0]))
