"""`mm medical segment|index|retrieve|ask|report|vocabulary` on files and folders: output, exit codes, what is kept."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest

from mm.cli import main
from mm.medical.command import SUBVERBS
from mm.medical.tasks.cases import find_cases, key_of
from tests.medical.tasks.conftest import NAME

pytest.importorskip("monai")


def run(capsys, *words: str, code: int = 0) -> str:
    assert main(["medical", *words]) == code, capsys.readouterr().err
    said = capsys.readouterr()
    assert NAME not in said.out and NAME not in said.err
    return said.out if code == 0 else said.err


@pytest.mark.parametrize("word", SUBVERBS)
def test_every_word_explains_itself(word, capsys):
    assert main(["medical", word, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"example:\n  mm medical {word}" in out and "--json" in out
    assert main(["medical", word, "--colour"]) == 2


def test_segment_a_folder_skips_what_is_done_and_says_so(scans, models, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["segment", str(scans), "--model", str(models / "velvet"), "--out", str(out), "--json"]
    found = json.loads(run(capsys, *words))
    assert len(found["cases"]) == 5 and {case["state"] for case in found["cases"]} == {"done"}
    first = out / found["cases"][0]["case"]
    image = find_cases(scans)[0].path
    written = nibabel.load(first / "labels.nii.gz")
    original = nibabel.load(image)
    assert written.shape == original.shape and np.allclose(written.affine, original.affine)
    millilitres = sum(row["ml"] for row in found["cases"][0]["structures"])
    voxels = int((np.asarray(written.dataobj) > 0).sum())
    assert millilitres == pytest.approx(voxels * abs(np.linalg.det(original.affine[:3, :3])) / 1000)
    before = (first / "case.html").stat().st_mtime_ns
    again = json.loads(run(capsys, *words))
    assert {case["state"] for case in again["cases"]} == {"done before"}
    assert (first / "case.html").stat().st_mtime_ns == before
    (first / "result.json").unlink()
    assert "without a result.json" in run(capsys, *words, code=1)
    run(capsys, *words, "--overwrite")
    assert "made with other settings (mesh" in run(capsys, *words, "--mesh", "stl", code=1)
    assert not any(NAME in path.name for path in out.rglob("*"))


def test_one_bad_scan_does_not_stop_a_folder(scans, models, tmp_path, capsys):
    place = tmp_path / "mixed"
    place.mkdir()
    good = find_cases(scans)[0].path
    (place / "good.nii.gz").write_bytes(good.read_bytes())
    (place / f"{NAME}.nii.gz").write_bytes(good.read_bytes()[:9000])
    model = str(models / "velvet")
    assert main(["medical", "segment", str(place), "--model", model, "--out", str(tmp_path / "o"), "--json"]) == 1
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert len(found["cases"]) == 1 and "cut off" in found["failed"][key_of(f"{NAME}.nii.gz")]
    assert main(["medical", "index", str(place), "--model", model, "--out", str(tmp_path / "i"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["scans"] == 1 and "cut off" in next(iter(found["failed"].values()))
    assert NAME not in said.out + said.err + str(found)


def test_index_retrieve_and_report(scans, models, tmp_path, capsys):
    model, index = str(models / "velvet"), str(tmp_path / "index")
    told = json.loads(run(capsys, "index", str(scans), "--model", model, "--out", index, "--json"))
    assert (told["scans"], told["reports"], told["computed_before"]) == (5, 4, 0)
    told = json.loads(run(capsys, "index", str(scans), "--model", model, "--out", index, "--json"))
    assert told["computed_before"] == 5
    scan = str(find_cases(scans)[1].path)
    words = ["retrieve", scan, "--index", index, "--model", model, "--out", str(tmp_path / "found")]
    found = json.loads(run(capsys, *words, "-k", "3", "--levels", "report", "word", "--rerank", "2", "--json"))
    assert len(found["hits"]) == 3 and all(hit["report"] and not hit["place"] for hit in found["hits"])
    page = (tmp_path / "found" / "gallery.html").read_text()
    assert page.count("data:image/png") == 3 and "Research use only" in page and "<script" not in page
    assert "--overwrite" in run(capsys, *words, code=1)
    run(capsys, "retrieve", "--text", "a cyst.", "--index", index, "--model", model)
    assert main(["medical", "retrieve", scan, "--text", "a", "--index", index, "--model", model]) == 2
    out = tmp_path / "drafts"
    words = ["report", scan, "--model", model, "--index", index, "--out", str(out), "--max-new-tokens", "20", "--maps"]
    found = json.loads(run(capsys, *words, "--json"))["cases"][0]
    assert found["draft"].startswith("[Draft written by a model. Research only") and len(found["references"]) == 3
    folder = out / found["case"]
    page = (folder / "case.html").read_text()
    assert "Nearest reports" in page and found["references"][0]["report"][:20] in page
    for path in folder.glob("attention_*.nii.gz"):
        assert nibabel.load(path).shape == nibabel.load(scan).shape


def test_ask_a_folder(scans, models, tmp_path, capsys):
    words = ["ask", str(scans), "--model", str(models / "velvet"), "--question", "Is the spleen enlarged?", "--json"]
    found = json.loads(run(capsys, *words, "--max-new-tokens", "3", "--choice", "yes", "--choice", "no"))
    assert [case["question"] for case in found["cases"]] == ["Is the spleen enlarged?"] * 5
    run(capsys, *words, "--max-new-tokens", "3", "--out", str(tmp_path / "o"))
    assert len(list((tmp_path / "o").glob("*/case.html"))) == 5
    assert "question" in run(capsys, "ask", str(scans), "--question", " ", code=1)


def test_a_model_without_the_part_says_how_to_get_it(scans, models, tmp_path, capsys):
    import shutil

    alone = tmp_path / "alone"
    shutil.copytree(models / "velvet", alone)
    scan = str(find_cases(scans)[0].path)
    said = run(capsys, "report", scan, "--model", str(alone), code=1)
    assert "mm fit --config medical/writer" in said and said.count("\n") < 5
    said = run(capsys, "segment", scan, "--model", str(alone), "--out", str(tmp_path / "o"), code=1)
    assert "mm.medical.velvet.transfer" in said
    run(capsys, "ask", scan, "--model", str(alone), "--writer", str(models / "velvet_writer"), "--question", "a b")


def test_which_scans_a_folder_holds(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b" / "DICOM").mkdir(parents=True)
    (tmp_path / "a" / "x.nii.gz").write_bytes(b"")
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "a" / ".hidden.nii").write_bytes(b"")
    for name in ("one", "two"):
        (tmp_path / "b" / "DICOM" / name).write_bytes(b"\0" * 128 + b"DICM")
    found = find_cases(tmp_path)
    assert [case.path.relative_to(tmp_path).as_posix() for case in found] == ["a/x.nii.gz", "b/DICOM"]
    assert len({case.key for case in found}) == 2
    assert [case.path for case in find_cases(tmp_path / "b")] == [tmp_path / "b"]
    with pytest.raises(ValueError, match="no scan"):
        find_cases((tmp_path / "empty").mkdir() or tmp_path / "empty")
