"""DICOM series: order, geometry, and every way in which a folder is no scan."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from pydicom.uid import JPEG2000Lossless, SecondaryCaptureImageStorage

from mm.medical.volumes import SeveralSeriesError, list_series, load_volume
from tests.medical.volumes.conftest import SECRETS, ct_slice, stored, write


def refusal(path, **options) -> str:
    with pytest.raises(ValueError) as error:
        load_volume(path, **options)
    assert not any(secret in str(error.value) for secret in SECRETS), error.value
    assert error.value.__cause__ is None  # a chained error would print the reader's message after all
    return str(error.value)


def test_slices_are_ordered_by_place_and_lie_where_the_header_says(folder):
    """File names and instance numbers run the other way: sorting by either mirrors the patient."""
    volume = load_volume(folder([ct_slice(n) for n in (3, 0, 2, 1)]))
    assert volume.native_shape == (5, 6, 4) and volume.native_codes == "LPS" and volume.unit == "HU"
    assert volume.spacing == pytest.approx((0.75, 0.5, 2.5))
    native = volume.to_native(volume.hu)
    for number in range(4):
        np.testing.assert_array_equal(native[:, :, number].T, stored(number).astype(int) - 1024)
    # column 1, row 2, slice 3: LPS (-10 + 0.75, -20 + 1.0, 7.5)
    np.testing.assert_allclose(volume.native_affine @ [1, 2, 3, 1], [9.25, 19.0, 7.5, 1.0])
    inverse = np.linalg.inv(volume.affine) @ [9.25, 19.0, 7.5, 1.0]
    assert volume.hu[tuple(np.rint(inverse[:3]).astype(int))] == 100 * 3 + 10 * 2 + 1 - 900


def test_several_series_are_listed_and_one_is_chosen(folder):
    other = [ct_slice(n, SeriesInstanceUID="1.2.9", SOPInstanceUID=f"1.2.9.{n}") for n in range(2)]
    place = folder([ct_slice(n) for n in range(3)] + other)
    with pytest.raises(SeveralSeriesError, match="2 series") as error:
        load_volume(place)
    assert [row["slices"] for row in error.value.series] == [3, 2] == [row["slices"] for row in list_series(place)]
    assert load_volume(place, series=2).hu.shape[2] == 2
    assert load_volume(place, series="1.2.9").hu.shape[2] == 2
    assert "no series 3" in refusal(place, series=3)


def test_one_series_with_two_orientations_is_two(folder):
    turned = [ct_slice(n, ImageOrientationPatient=[0, 1, 0, 0, 0, -1]) for n in range(4, 6)]
    with pytest.raises(SeveralSeriesError):
        load_volume(folder([ct_slice(n) for n in range(3)] + turned))


def test_localisers_screenshots_and_text_files_are_left_out_and_counted(folder):
    extra = [
        ct_slice(7, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
        ct_slice(8, SOPClassUID=SecondaryCaptureImageStorage),
    ]
    place = folder([ct_slice(n) for n in range(3)] + extra)
    (place / "Eelina.txt").write_text("Hovercraft")
    volume = load_volume(place)
    assert volume.hu.shape[2] == 3
    notes = " ".join(volume.provenance.notes)
    assert "localiser" in notes and "secondary capture" in notes and "not DICOM" in notes


def test_a_missing_slice_is_refused_or_filled(folder):
    place = folder([ct_slice(n) for n in (0, 1, 3, 4, 5)])
    assert "lacks 1 slices" in refusal(place)
    volume = load_volume(place, missing="interpolate")
    assert volume.hu.shape[2] == 6 and "interpolated" in " ".join(volume.provenance.notes)
    np.testing.assert_array_equal(volume.to_native(volume.hu)[:, :, 2].T, stored(2).astype(int) - 1024)


def test_too_many_missing_slices_are_never_filled(folder):
    assert "too many" in refusal(folder([ct_slice(n) for n in (0, 1, 2, 50)]), missing="interpolate")


def test_uneven_distances_are_refused(folder):
    slices = [ct_slice(n) for n in range(3)] + [ct_slice(3, ImagePositionPatient=[-10, -20, 8.4])]
    assert "uneven slice distances" in refusal(folder(slices))


def test_equal_doubles_are_dropped_and_different_ones_refused(folder):
    slices = [ct_slice(n) for n in range(3)]
    volume = load_volume(folder([*slices, ct_slice(1, SOPInstanceUID="1.2.77")]))
    assert volume.hu.shape[2] == 3 and "duplicate" in " ".join(volume.provenance.notes)


def test_two_phases_in_one_series_are_refused(folder):
    slices = [ct_slice(n) for n in range(3)]
    place = folder([*slices, ct_slice(1, SOPInstanceUID="1.2.77", PixelData=stored(2).tobytes())])
    assert "one place twice" in refusal(place)


def test_gantry_tilt_is_kept_in_the_affine(folder):
    """A reader that takes the z component alone puts the upper slices 5 mm too far back."""
    slices = [ct_slice(n, ImagePositionPatient=[-10, -20 + 0.5 * n, 2.5 * n]) for n in range(4)]
    volume = load_volume(folder(slices))
    assert "tilted by 11.3 degrees" in " ".join(volume.provenance.notes)
    np.testing.assert_allclose(volume.native_affine @ [0, 0, 3, 1], [10.0, 18.5, 7.5, 1.0])
    assert volume.voxel_ml == pytest.approx(0.75 * 0.5 * 2.5 / 1000)  # shearing keeps volumes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"PixelSpacing": [0, 0]}, "spacing of zero"),
        ({"PixelSpacing": None}, "spacing of zero"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "colour (RGB)"),
        ({"ImagePositionPatient": None}, "no position"),
        ({"NumberOfFrames": 3}, "multi-frame"),
        ({"RescaleIntercept": 0, "PixelData": bytes(range(60))}, "8-bit grey"),
        ({"PixelData": b"\0\1"}, "can't be decoded"),
    ],
)
def test_what_is_no_scan_is_refused_with_its_reason(folder, changes, said):
    if changes.get("RescaleIntercept") == 0:
        changes = {**changes, "PixelData": (np.arange(30) % 256).astype("<u2").tobytes()}
    assert said in refusal(folder([ct_slice(n, **changes) for n in range(3)]))


def test_one_slice_is_no_volume(folder):
    assert "1 slice" in refusal(folder([ct_slice(0)]))


def test_a_syntax_without_codec_names_it(folder):
    place = folder([ct_slice(n) for n in range(2)])
    for path in place.iterdir():
        raw = path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.4.90"[:20], 1)
        path.write_bytes(raw)
    import pydicom

    available = pydicom.pixels.get_decoder(JPEG2000Lossless).is_available
    said = refusal(place)
    assert "can't be decoded" in said or "compressed as" in said or available


def test_rescaled_twice_is_refused(folder):
    """Two intercepts put soft tissue at -984; a scan of air, skin and tissue shows it."""
    rng = np.random.default_rng(0)
    slices = []
    for number in range(4):
        hu = np.where(np.mgrid[:6, :5][0] < 3, -1000, 40) + rng.integers(-20, 20, (6, 5))
        slices.append(ct_slice(number, RescaleIntercept=-2048, PixelData=(hu + 1024).astype("<u2").tobytes()))
    assert "applied twice" in refusal(folder(slices))


def test_padding_becomes_air_and_is_counted(folder):
    slices = []
    for number in range(3):
        pixels = stored(number).astype("<i2") - 1024
        pixels[0, :2] = -2000
        changes = {"PixelRepresentation": 1, "RescaleIntercept": 0, "PixelData": pixels.tobytes()}
        slices.append(ct_slice(number, **changes))
    volume = load_volume(folder(slices))
    assert volume.hu.min() == -1024 and "6 voxels below" in " ".join(volume.provenance.notes)


def test_a_zip_is_read_and_its_paths_are_not_trusted(folder, tmp_path):
    place = folder([ct_slice(n) for n in range(3)])
    archive = tmp_path / "Hovercraft.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for number, path in enumerate(place.iterdir()):
            packed.write(path, f"../../outside_{number}.dcm")
    assert load_volume(archive).hu.shape[2] == 3
    assert not list(tmp_path.parent.glob("outside_*"))


def test_no_output_names_the_patient(folder, caplog, capfd, recwarn):
    """Header values that break their type make pydicom quote them."""
    slices = [ct_slice(n) for n in range(3)]
    place = folder(slices)
    broken = ct_slice(9)
    write(broken, place / "x.dcm")
    raw = (place / "x.dcm").read_bytes().replace(b"19610203", b"Eelina61")
    (place / "x.dcm").write_bytes(raw)
    try:
        text = str(load_volume(place, missing="interpolate").summary())
    except ValueError as error:
        text = str(error)
    said = text + caplog.text + "".join(capfd.readouterr()) + " ".join(str(w.message) for w in recwarn)
    assert not any(secret in said for secret in SECRETS)


def test_nothing_there_is_said_without_the_name(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load_volume(tmp_path / "Hovercraft.nii.gz")
    assert "Hovercraft" not in str(error.value)
