"""The tour as a program: order, progress, and a page whose extra is missing."""

from __future__ import annotations

import json

import pytest

from mm.app import tour
from mm.registry import Registry


def good(page):
    page.text("it ran")
    page.record("answer", 42 + page.seed)


def without_its_library(page):
    page.text("begun")
    raise ImportError("Reading a scan needs nibabel: pip install 'mm[medical]'")


def broken(page):
    raise ValueError("a defect")


@pytest.fixture
def pages(monkeypatch) -> Registry:
    registry = Registry("tour page")
    monkeypatch.setattr(tour, "TOUR", registry)
    for name in ("good", "without_its_library", "broken"):
        registry.add(name, f"{__name__}:{name}", about=name.replace("_", " "))
    monkeypatch.setattr(registry, "get", lambda name: globals()[name])
    return registry


def test_pages_come_in_the_order_asked_and_a_missing_extra_stops_none(pages, tmp_path, capsys):
    path, numbers = tour.run(tmp_path, only=["without_its_library", "good"], seed=1)
    text = path.read_text(encoding="utf-8")
    assert text.index("not run: Reading a scan needs nibabel") < text.index("it ran")
    assert "begun" not in text
    assert numbers == {"without_its_library": {}, "good": {"answer": 43}}
    assert json.loads((tmp_path / "numbers.json").read_text()) == numbers
    assert "[2/2] good" in capsys.readouterr().err


def test_a_defect_is_not_hidden(pages, tmp_path):
    with pytest.raises(ValueError, match="a defect"):
        tour.run(tmp_path, only=["broken", "good"])
    assert not (tmp_path / "index.html").exists()
