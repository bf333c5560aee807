"""`mm cad build`, `score` and `generate`: files, numbers, and one line for a wrong input."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("manifold3d", reason="parts are built by the mesh kernel: pip install 'mm[cad]'")

from PIL import Image

from mm.cad.command import run
from mm.cad.examples import PLATE
from mm.command import FAILED, OK, USAGE, run_command


@pytest.fixture
def plate(tmp_path):
    path = tmp_path / "plate.py"
    path.write_text(PLATE)
    return path


def call(*words) -> int:
    return run_command(run, [str(word) for word in words])


def test_build_writes_files_and_measures(plate, tmp_path, capsys):
    picture = tmp_path / "plate.png"
    code = call("build", plate, "--kernel", "mesh", "-o", tmp_path / "plate.stl", "--picture", picture, "--json")
    assert code == OK
    found = json.loads(capsys.readouterr().out)
    assert found["volume_mm3"] > 0 and found["is_valid"] and len(found["files"]) == 2
    assert (tmp_path / "plate.stl").stat().st_size > 84
    with Image.open(picture) as image:
        assert image.size == (480, 480)


def test_build_says_what_is_wrong(plate, tmp_path, capsys):
    assert call("build", tmp_path / "none.py") == FAILED
    plate.write_text("Loops0 = [")
    assert call("build", plate, "--kernel", "mesh") == FAILED
    plate.write_text(PLATE.replace("extent_one= 6.35", "extent_one= 0."))
    assert call("build", plate, "--kernel", "mesh") == FAILED
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 3 and "no such file" in lines[0] and "line 1" in lines[1] and "[zero-" in lines[2]
    assert call("build") == USAGE


def test_score_of_files_and_folders(plate, tmp_path, capsys):
    assert call("score", plate, plate, "--json") == OK
    assert json.loads(capsys.readouterr().out)["scaled_iou"] == pytest.approx(1)
    for name in ("true", "found"):
        (tmp_path / name).mkdir()
    for name in ("a", "b"):
        (tmp_path / "true" / f"{name}.openecad.txt").write_text(PLATE)
    (tmp_path / "found" / "a.py").write_text(PLATE)
    assert call("score", tmp_path / "found", tmp_path / "true", "--json") == OK
    found = json.loads(capsys.readouterr().out)
    assert found["parts"] == 2 and found["invalid_ratio"] == 0.5
    assert call("score", tmp_path / "nowhere", tmp_path / "true") == FAILED


def test_generate_from_a_folder(plate, tmp_path, capsys):
    from mm.cad.presets import openecad_tiny

    openecad_tiny(width=32, depth=2, tower_width=32, tower_depth=2).save_pretrained(tmp_path / "model")
    assert call("build", plate, "--kernel", "mesh", "--picture", tmp_path / "p.png", "--size", 128) == OK
    capsys.readouterr()
    words = ["--model", tmp_path / "model", "--samples", 0, "--program", tmp_path / "out.py", "--json"]
    assert call("generate", tmp_path / "p.png", *words) == OK
    found = json.loads(capsys.readouterr().out)
    assert (tmp_path / "out.py").read_text() == found["program"]
    assert found["candidates"] == 1 and 0 <= found["agreement"] <= 1
    assert found["uncertain"], "random weights explain nothing"
    assert call("generate", tmp_path / "none.png", "--model", tmp_path / "model") == FAILED
