"""Every notebook runs top to bottom on what ships with the package, shows pictures, and lies in git without outputs."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXECUTED = ROOT / "out" / "ci" / "notebooks"
LIMIT_S = 120
"""Longest time of one cell."""


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def pictures(notebook: dict[str, Any]) -> int:
    """Pictures that the cells show."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    return sum(any(kind.startswith("image/") for kind in output.get("data", ())) for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_short_of_nothing(path):
    """A title with two lines on what it shows, a last section on real weights, no outputs."""
    cells = read(path)["cells"]
    first, last = ("".join(cells[place]["source"]) for place in (0, -1))
    title, _, about = first.partition("\n")
    assert title.startswith("# ") and 2 <= len(about.strip().splitlines()) <= 4
    assert last.startswith("## With real weights")
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in cells), (
        "outputs must be stripped: jupyter nbconvert --clear-output --inplace notebooks/*.ipynb"
    )
    assert all(len(line) <= 121 for cell in cells for line in cell["source"]), "a line is longer than 120"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch, capsys):
    nbclient = pytest.importorskip("nbclient", reason="running notebooks needs nbclient: pip install -e '.[dev]'")
    import nbformat

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    notebook = nbformat.read(path, as_version=4)
    begun = time.perf_counter()
    runner = nbclient.NotebookClient(
        notebook, timeout=LIMIT_S, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    runner.execute()
    with capsys.disabled():
        print(f"\n{path.name}: {time.perf_counter() - begun:.0f} s, {pictures(notebook)} pictures")
    EXECUTED.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, EXECUTED / path.name)
    assert pictures(notebook) > 0, "no picture came out inline"
