"""Every kind of unusable scan, end to end through the commands; and a name in every text field of every file."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("monai")

from pydicom.datadict import DicomDictionary  # noqa: E402
from pydicom.uid import SecondaryCaptureImageStorage  # noqa: E402

from mm.cli import main  # noqa: E402
from mm.medical.volumes.deidentify_rules import KEPT_TEXT  # noqa: E402
from tests.medical.volumes.conftest import ct_slice, folder, stored, write  # noqa: E402

__all__ = ["folder"]
MARKER = "Zanzibarbara"


def nifti(path: Path, array: np.ndarray, spacing=(1, 1, 1)) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, np.diag([*spacing, 1.0])), path)
    return path


def hu(shape=(12, 12, 12)) -> np.ndarray:
    array = np.random.default_rng(0).integers(-30, 60, shape).astype(np.int16)
    array[: shape[0] // 3] = -1000
    return array


def zero_spacing(path: Path) -> Path:
    raw = bytearray(nifti(path, hu()).read_bytes())
    raw[80:92] = np.array([1, 0, 1], "<f4").tobytes()
    path.write_bytes(raw)
    return path


def cut_off(path: Path) -> Path:
    raw = nifti(path, hu((30, 30, 30))).read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    return path


def twice(number: int):
    values = np.where(np.mgrid[:6, :5][0] < 3, -1000, 40) + np.random.default_rng(number).integers(-20, 20, (6, 5))
    return ct_slice(number, RescaleIntercept=-2048, PixelData=(values + 1024).astype("<u2").tobytes())


def compressed(place: Path) -> Path:
    """Claims a syntax that nothing decodes: a private one."""
    for path in place.iterdir():
        path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0", 1))
    return place


COLOUR = np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
REFUSED = {
    "two series": (lambda d, f: f([ct_slice(n, SeriesInstanceUID=f"1.{9 - n // 3}") for n in range(5)]), "2 series"),
    "missing slice": (lambda d, f: f([ct_slice(n) for n in (0, 1, 3, 4)]), "lacks 1 slices"),
    "one place twice": (lambda d, f: f([*(ct_slice(n) for n in range(3)),
                        ct_slice(1, SOPInstanceUID="1.7", PixelData=stored(2).tobytes())]), "one place twice"),
    "localisers only": (lambda d, f: f([ct_slice(n, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]) for n in range(2)]),
                        "localiser"),
    "screenshots only": (lambda d, f: f([ct_slice(1, SOPClassUID=SecondaryCaptureImageStorage)]), "secondary capture"),
    "RGB DICOM": (lambda d, f: f([ct_slice(n, SamplesPerPixel=3, PhotometricInterpretation="RGB") for n in range(2)]),
                  "colour"),
    "RGB NIfTI": (lambda d, f: nifti(d / "a.nii", COLOUR), "colour"),
    "4-D": (lambda d, f: nifti(d / "a.nii.gz", hu((6, 6, 6, 3))), "several volumes"),
    "zero spacing": (lambda d, f: zero_spacing(d / "a.nii"), "spacing of"),
    "8-bit": (lambda d, f: nifti(d / "a.nii", np.arange(216, dtype=np.uint8).reshape(6, 6, 6)), "8-bit grey"),
    "rescaled twice": (lambda d, f: f([twice(n) for n in range(4)]), "applied twice"),
    "no codec": (lambda d, f: compressed(f([ct_slice(n) for n in range(2)])), "decode"),
    "cut-off gzip": (lambda d, f: cut_off(d / "a.nii.gz"), "cut off"),
}  # fmt: skip
"""Name -> (folder, fill) -> path, and what the message says."""


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_used_is_one_sentence_in_every_command(kind, folder, models, tmp_path, capsys):
    make, said = REFUSED[kind]
    path = str(make(tmp_path, folder))
    model = ["--model", str(models / "velvet")]
    words = {
        "segment": [path, *model, "--out", str(tmp_path / "o")],
        "embed": [path, *model],
        "ask": [path, *model, "--question", "Is it?"],
        "report": [path, *model],
    }
    for word, rest in words.items():
        assert main(["medical", word, *rest]) == 1, word
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("error: ") and said in last and "Traceback" not in last, last
    assert not (tmp_path / "o").exists()
    # an index notes the scan as failed and goes on
    assert main(["medical", "index", path, *model, "--out", str(tmp_path / "i"), "--json"]) == 1
    out = capsys.readouterr()
    assert said in next(iter(json.loads(out.out)["failed"].values()))


def test_gantry_tilt_duplicates_and_filled_gaps_go_through_and_are_told(folder, models, tmp_path, capsys):
    slices = [ct_slice(n, ImagePositionPatient=[-10, -20 + 0.5 * n, 2.5 * n]) for n in range(4)]
    place = folder([*slices, ct_slice(1, SOPInstanceUID="1.8", ImagePositionPatient=[-10, -19.5, 2.5])])
    words = ["segment", str(place), "--model", str(models / "velvet"), "--out", str(tmp_path / "o"), "--json"]
    assert main(["medical", *words]) == 0
    case = json.loads(capsys.readouterr().out)["cases"][0]
    notes = " ".join(case["scan"]["notes"])
    assert "tilted" in notes and "duplicate" in notes
    assert "tilted" in (tmp_path / "o" / case["case"] / "case.html").read_text()


def test_a_report_without_a_sentence_is_that_scan_s_failure(models, tmp_path, capsys):
    place = tmp_path / "scans"
    place.mkdir()
    for name, text in (("a", "The liver is normal."), ("b", " \n ... "), ("c", "\xff")):
        nifti(place / f"{name}.nii", hu())
        (place / f"{name}.txt").write_bytes(text.encode("latin-1"))
    words = ["index", str(place), "--model", str(models / "velvet"), "--out", str(tmp_path / "i"), "--json"]
    assert main(["medical", *words]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["scans"] == 1 and len(found["failed"]) == 2
    assert any("no sentence" in why for why in found["failed"].values())
    assert any("UTF-8" in why for why in found["failed"].values())


def marked_slice(number: int):
    """A slice with the marker in every text field of the DICOM dictionary but those that describe the machine."""
    data = ct_slice(number)
    for tag, (kind, _, _, retired, keyword) in DicomDictionary.items():
        if (
            kind in ("PN", "LO", "SH", "ST", "LT", "UT", "UC")
            and keyword
            and keyword not in KEPT_TEXT
            and not retired
            and 2 < tag >> 16 < 0x3000
        ):
            data.add_new(tag, kind, MARKER)
    for keyword in ("Modality", "ImageType", "PhotometricInterpretation"):
        setattr(data, keyword, getattr(ct_slice(number), keyword))
    assert sum(MARKER in str(element.value) for element in data) > 300
    return data


def test_a_name_in_every_field_of_every_file_never_comes_out(models, tmp_path, capsys, caplog, recwarn):
    place = tmp_path / "patients" / MARKER / "CT"
    place.mkdir(parents=True)
    for number in range(3):
        write(marked_slice(number), place / f"{MARKER}_{number}.dcm")
    image = nibabel.Nifti1Image(hu(), np.eye(4))
    for field in ("descrip", "aux_file", "db_name", "intent_name"):
        image.header[field] = MARKER.encode()
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, MARKER.encode()))
    other = tmp_path / "patients" / MARKER / f"{MARKER}.nii.gz"
    nibabel.save(image, other)
    other.with_name(f"{MARKER}.txt").write_text(f"Name: {MARKER}\nThe liver is normal.")
    broken = tmp_path / "patients" / f"{MARKER}.nii.gz"
    broken.write_bytes(other.read_bytes()[:80])
    scans, model, out = str(tmp_path / "patients"), ["--model", str(models / "velvet")], tmp_path / "out"
    index = ["--index", str(out / "index")]
    runs = [
        (["info", str(place)], 0),
        (["embed", str(place), *model, "--out", str(tmp_path / "e.safetensors")], 0),
        (["segment", scans, *model, "--out", str(out / "seg"), "--mesh", "ply"], 1),
        (["index", scans, *model, "--out", str(out / "index")], 1),
        (["retrieve", str(other), *model, *index, "--out", str(out / "found")], 0),
        (["ask", scans, *model, "--question", "Is the liver normal?", "--out", str(out / "ask")], 1),
        (["report", scans, *model, *index, "--out", str(out / "rep"), "--maps", "--max-new-tokens", "30"], 1),
        (["vocabulary", scans, "--out", str(out / "vocab.txt")], 0),
        (["deidentify", str(place), "--out", str(out / "clean")], 0),
    ]
    for words, code in runs:
        assert main(["medical", *words]) == code, words[0]
        said = capsys.readouterr()
        text = said.out + said.err + caplog.text + " ".join(str(one.message) for one in recwarn)
        assert MARKER not in text, words[0]
    for path in out.rglob("*"):
        assert MARKER not in path.name
        assert not path.is_file() or MARKER.encode() not in contents(path), path.name


def contents(path: Path) -> bytes:
    """Bytes of a file, unpacked if it is packed."""
    import gzip

    raw = path.read_bytes()
    return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
