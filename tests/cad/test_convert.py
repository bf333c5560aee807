"""`mm cad convert`, as a user meets it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mm.cad import emit, from_deepcad, load_program, parse, to_deepcad
from mm.cad.command import run
from mm.cad.examples import PLATE
from mm.command import run_command


@pytest.fixture
def folder(tmp_path, parts):
    (tmp_path / "a.json").write_text(json.dumps(parts[5].deepcad))
    (tmp_path / "b.py").write_text(PLATE)
    (tmp_path / "broken.py").write_text("a = []\nb = add_box()\n")
    return tmp_path


def test_json_to_text(folder, parts, capsys):
    assert run_command(run, ["convert", str(folder / "a.json")]) == 0
    assert capsys.readouterr().out == parts[5].text
    assert run_command(run, ["convert", str(folder / "a.json"), "-o", str(folder / "a.py")]) == 0
    assert (folder / "a.py").read_text() == parts[5].text


@pytest.mark.parametrize("form", ["openecad", "canonical", "deepcad", "vector"])
def test_forms_can_be_read_again(folder, form):
    out = folder / ("out.json" if form in ("deepcad", "vector") else "out.py")
    assert run_command(run, ["convert", str(folder / "b.py"), "--to", form, "-o", str(out)]) == 0
    again = load_program(out)
    assert len(again.extrudes) == 1
    if form != "vector":
        assert again.extrudes[0].extent_one == pytest.approx(6.35)


def test_the_ending_names_the_form(folder):
    for ending, word in ((".scad", "linear_extrude"), (".FCMacro", "App.Placement"), (".json", "ExtrudeFeature")):
        out = folder / f"out{ending}"
        assert run_command(run, ["convert", str(folder / "b.py"), "-o", str(out)]) == 0
        assert word in out.read_text()


def test_many_files_go_on_after_a_bad_one(folder, capsys):
    names = [str(folder / name) for name in ("a.json", "broken.py", "missing.py", "b.py")]
    assert run_command(run, ["convert", *names, "-o", str(folder / "texts"), "--json"]) == 1
    shown = capsys.readouterr()
    rows = json.loads(shown.out)
    assert [("error" in row) for row in rows] == [False, True, True, False]
    assert "line 2, column 5" in rows[1]["error"] and "broken.py" in shown.err
    assert {p.name for p in (folder / "texts").iterdir()} == {"a.py", "b.py"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["convert", "broken.py"], 1, "unknown-function"),
        (["convert", "missing.json"], 1, "missing.json"),
        (["convert", "a.json", "b.py"], 2, "folder"),
        (["convert", "b.py", "--to", "h5"], 2, "needs a file"),
        (["convert", "b.py", "--to", "step"], 2, "invalid choice"),
        (["convert", "b.py", "-o", "nowhere/out.py"], 1, "nowhere"),
        (["convert", "a.json", "--frames", "legacy", "--references", "improved"], 1, "legacy"),
        (["weld"], 2, "convert"),
    ],
)
def test_wrong_input_is_one_line(folder, monkeypatch, capsys, arguments, code, message):
    monkeypatch.chdir(folder)
    assert run_command(run, arguments) == code
    assert message in capsys.readouterr().err


def test_files_that_are_no_parts(folder):
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "binary.py").write_bytes(b"\xff\xfe\x00a")
    (folder / "list.json").write_text("[1, 2]")
    for name in ("deep.json", "binary.py", "list.json"):
        with pytest.raises(ValueError, match=name):
            load_program(folder / name)


def test_h5_files(folder, parts):
    h5py = pytest.importorskip("h5py")
    assert run_command(run, ["convert", str(folder / "a.json"), "-o", str(folder / "a.h5")]) == 0
    with h5py.File(folder / "a.h5") as file:
        rows = file["vec"][()]
    assert np.array_equal(rows, to_deepcad(from_deepcad(parts[5].deepcad), "vector"))
    assert load_program(folder / "a.h5") == from_deepcad(rows)
    with h5py.File(folder / "empty.h5", "w") as file:
        file["other"] = 1
    with pytest.raises(ValueError, match="vec"):
        load_program(folder / "empty.h5")
    (folder / "no.h5").write_text("text")
    with pytest.raises(ValueError, match=r"no\.h5"):
        load_program(folder / "no.h5")


def test_h5_without_the_library(folder, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "h5py", None)
    (folder / "a.h5").write_text("")
    with pytest.raises(ImportError, match=r"mm\[cad\]"):
        load_program(folder / "a.h5")


def test_legacy_text(tmp_path, parts):
    part = next(part for part in parts if not part.clean)
    (tmp_path / "a.json").write_text(json.dumps(part.deepcad))
    run_command(run, ["convert", str(tmp_path / "a.json"), "--frames", "legacy", "-o", str(tmp_path / "a.py")])
    assert (tmp_path / "a.py").read_text() == part.text != emit(from_deepcad(part.deepcad))


def test_the_language_needs_no_torch():
    import subprocess
    import sys

    code = """
import sys, mm.cad as cad
from mm.cad.examples import PLATE
cad.emit(cad.parse(PLATE)), cad.validate(PLATE), cad.edit(PLATE)
assert not {"torch", "OCP", "numpy"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert parse(PLATE)
