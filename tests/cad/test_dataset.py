"""Training sets from folders: complete, resumable, and not to be stopped by a bad part."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("manifold3d", reason="parts are built by the mesh kernel: pip install 'mm[cad]'")

from PIL import Image

from mm.cad import parse
from mm.cad.dataset import ALL_STYLES, DatasetConfig, find_parts, make_dataset, record_path
from mm.cad.kernel import build
from mm.command import FAILED, run_command

DATA = Path(__file__).parents[1] / "parity" / "data" / "openecad"
SMALL = DatasetConfig(kernel="mesh", size=(64, 48))
GOOD = "00003877", "00809394"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two good parts and every kind of bad one."""
    source = tmp_path / "deepcad"
    (source / "sub").mkdir(parents=True)
    for name in GOOD:
        shutil.copy(DATA / f"{name}.deepcad.json", source / "sub" / f"{name}.json")
    (source / "torn.json").write_text('{"entities": {')
    (source / "empty.json").write_text("{}")
    (source / "list.json").write_text("[1, 2]")
    (source / "binary.json").write_bytes(b"\xff\xfe\x00\x01")
    flat = json.loads((DATA / "00809394.deepcad.json").read_text())
    for entity in flat["entities"].values():
        if "extent_one" in entity:
            entity["extent_one"]["distance"]["value"] = 0.0
    (source / "flat.json").write_text(json.dumps(flat))
    return source


def test_good_parts_are_there_and_bad_ones_are_counted(folder, tmp_path):
    out = tmp_path / "out"
    report = make_dataset(folder, out, SMALL)
    assert report.parts == 7 and report.samples == 2 and report.statuses["ok"] == 2
    assert sum(count for status, count in report.statuses.items() if status != "ok") == 5
    samples = json.loads((out / "train.json").read_text())
    for sample, name in zip(samples, GOOD, strict=True):
        assert sample["id"] == f"sub/{name}"
        with Image.open(out / "images" / sample["image"]) as picture:
            assert picture.size == (64, 48)
        human, model = sample["conversations"]
        assert human["from"] == "human" and human["value"].startswith("<image>\n")
        code = model["value"].split("```python\n")[1].removesuffix("```")
        assert code == (DATA / f"{name}.openecad.txt").read_text()
        assert build(parse(code), kernel="mesh").volume > 0
    record = json.loads(record_path(out, "flat").read_text())
    assert record["status"] in ("zero-thickness", "zero-extent") and record["message"]


def test_a_second_run_goes_on_and_other_settings_are_refused(folder, tmp_path):
    out = tmp_path / "out"
    make_dataset(folder, out, SMALL)
    before = (out / "train.json").read_bytes()
    lost = record_path(out, f"sub/{GOOD[0]}")
    lost.unlink()
    done = []
    report = make_dataset(folder, out, SMALL, progress=lambda record, *_: done.append(record["id"]))
    assert done == [f"sub/{GOOD[0]}"] and report.skipped == 6
    assert (out / "train.json").read_bytes() == before
    with pytest.raises(ValueError, match="other settings"):
        make_dataset(folder, out, DatasetConfig(kernel="mesh", size=(32, 32)))


def test_all_styles_and_a_length_limit(folder, tmp_path):
    config = DatasetConfig(kernel="mesh", size=(48, 48), pictures="all", max_characters=600)
    report = make_dataset(folder, tmp_path / "out", config)
    samples = json.loads((tmp_path / "out" / "train.json").read_text())
    assert [sample["image"].removesuffix(".png").rpartition("_")[2] for sample in samples] == list(ALL_STYLES)
    assert report.statuses["too-long"] == 1


def test_workers_give_the_same_set(folder, tmp_path):
    one = make_dataset(folder, tmp_path / "one", SMALL)
    two = make_dataset(folder, tmp_path / "two", SMALL, workers=2)
    assert one.statuses == two.statuses
    assert (tmp_path / "one" / "train.json").read_bytes() == (tmp_path / "two" / "train.json").read_bytes()


def test_a_killed_run_is_finished_by_the_same_command(folder, tmp_path):
    """Killed by force after its first record; the second run keeps that and finishes the rest."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mm", "cad", "dataset", str(folder), "-o", str(out), "--kernel", "mesh"]
    command += ["--size", "64x48"]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(out.glob("records/*/*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    first = {path: path.stat().st_mtime_ns for path in out.glob("records/*/*.json")}
    assert first
    assert subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode == 0
    assert len(list(out.glob("records/*/*.json"))) == 7
    assert all(path.stat().st_mtime_ns == when for path, when in first.items())
    assert len(json.loads((out / "train.json").read_text())) == 2


def test_nothing_to_convert_is_said(tmp_path, capsys):
    from mm.cad.command import run

    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_parts(tmp_path / "nowhere")
    assert run_command(run, ["dataset", str(tmp_path), "-o", str(tmp_path / "out")]) == FAILED
    assert "no *.json" in capsys.readouterr().err
