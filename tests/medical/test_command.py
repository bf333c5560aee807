"""`mm medical`: files in, numbers and pictures out; no name in any output."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest

from mm.cli import main
from tests.medical.volumes.conftest import SECRETS, ct_slice, folder

__all__ = ["folder"]


@pytest.fixture()
def scan(tmp_path):
    hu = np.full((12, 13, 6), -1000, np.int16)
    hu[3:9, 3:9, 1:5] = 40
    path = tmp_path / "Eelina.nii.gz"
    nibabel.save(nibabel.Nifti1Image(hu, np.diag([-1.0, 1.0, 2.0, 1.0])), path)
    return path


def test_info_prints_facts_and_draws(scan, tmp_path, capsys):
    picture = tmp_path / "panel.png"
    assert main(["medical", "info", str(scan), "--json", "--picture", str(picture), "--window", "lung"]) == 0
    out = capsys.readouterr().out
    found = json.loads(out)
    assert found["native_axes"] == "LAS" and found["spacing_mm"] == [1, 1, 2] and "Eelina" not in out
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert main(["medical", "info", str(scan)]) == 0
    assert "12 x 13 x 6" in capsys.readouterr().out


def test_info_lists_several_series(folder, capsys):
    place = folder([ct_slice(n) for n in range(3)] + [ct_slice(n, SeriesInstanceUID="1.9") for n in range(2)])
    assert main(["medical", "info", str(place), "--json"]) == 0
    assert [row["slices"] for row in json.loads(capsys.readouterr().out)["series"]] == [3, 2]
    assert main(["medical", "info", str(place), "--series", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shape"][2] == 2


def test_errors_are_one_line_without_a_name(folder, tmp_path, capsys):
    place = folder([ct_slice(n) for n in (0, 2, 3, 4, 5)])
    for argv in (["info", str(place)], ["info", str(tmp_path / "Eelina")], ["info", str(place), "--series", "9"]):
        assert main(["medical", *argv]) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and not any(secret in said for secret in SECRETS)
    assert main(["medical", "segmentation"]) == 2
    assert "deidentify" in capsys.readouterr().err
    assert main(["medical", "info", str(place), "--intensity", "rgb"]) == 2


def test_deidentify_writes_and_reports(folder, tmp_path, capsys):
    place = folder([ct_slice(n) for n in range(2)])
    assert main(["medical", "deidentify", str(place), "--out", str(tmp_path / "clean")]) == 0
    out = capsys.readouterr().out
    assert "2 files written" in out and "PatientName" in out and not any(secret in out for secret in SECRETS)
    assert main(["medical", "info", str(tmp_path / "clean"), "--json"]) == 0
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.txt").write_text("no scan")
    assert main(["medical", "deidentify", str(tmp_path / "empty"), "--out", str(tmp_path / "none")]) == 1
    assert "no file was written" in capsys.readouterr().err


def test_embed_is_the_same_for_every_axis_order_of_a_scan(tmp_path, capsys):
    """A flipped or swapped file shows the same patient: equal vectors, or orientation was lost on the way."""
    import mm
    from mm.medical.phantoms import phantom

    mm.create_model("velvet_tiny").save_pretrained(tmp_path / "model")
    found = phantom(seed=3, size=24)
    image = nibabel.Nifti1Image(found.hu, found.affine)
    vectors = []
    for number, axes in enumerate(("RAS", "LPS", "PIR")):
        wanted = nibabel.orientations.axcodes2ornt(axes)
        turned = image.as_reoriented(nibabel.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], wanted))
        assert "".join(nibabel.aff2axcodes(turned.affine)) == axes
        path = tmp_path / f"Eelina{number}.nii.gz"
        nibabel.save(turned, path)
        out = tmp_path / f"{number}.safetensors"
        assert (
            main(["medical", "embed", str(path), "--model", str(tmp_path / "model"), "--out", str(out), "--json"]) == 0
        )
        printed = capsys.readouterr().out
        assert out.is_file() and "Eelina" not in printed
        vectors.append(json.loads(printed)["report"])
    np.testing.assert_allclose(vectors[1:], [vectors[0]] * 2, atol=1e-4)
    assert np.std(vectors[0]) > 1e-3
