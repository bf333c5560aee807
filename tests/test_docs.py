"""The documentation builds without a warning, needs no network, and its reference holds every public name."""

from __future__ import annotations

import html
import os
import re
import runpy
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DRAW = runpy.run_path(str(ROOT / "docs" / "pictures" / "draw.py"))
SYSTEMS = ("lavi", "flame", "flowcut", "visionthink", "evilm", "semanticodec", "cad", "velvet")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site; `--strict` makes every dead link, lost page and unknown name an error."""
    pytest.importorskip("mkdocs", reason="the site needs mkdocs: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_nothing_is_loaded_from_the_network(site):
    loads = r"<(?:script|link|img|iframe|audio|video|source)\b[^>]*?(?:src|href)=[\"']?(https?://[^\"' >]+)"
    for page in site.rglob("*.html"):
        assert re.findall(loads, page.read_text(encoding="utf-8")) == [], page.name
    for style in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import)\s*[\"']?https?://", style.read_text(encoding="utf-8")) == [], style.name


def test_the_reference_holds_every_public_function_and_class(site):
    pages = sorted((site / "reference").glob("*.html"))
    assert len(pages) > 10
    for page in pages:
        module = import_module(page.stem)
        shown = html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))
        missing = [
            name
            for name in module.__all__
            if hasattr(getattr(module, name), "__qualname__") and not re.search(rf"\b{name}\b", shown)
        ]
        assert not missing, f"{page.stem}: {missing}"


def test_domain_packages_are_read_from_where_they_lie(site):
    """Static readers don't know the folder mapping: without it the five domains would be empty."""
    page = (site / "reference" / "mm.pruning.html").read_text(encoding="utf-8")
    assert "Tokens leave" in page or "target_tokens" in page


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_page_shows_its_drawing(name):
    assert f"(pictures/{name}.svg)" in (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", DRAW["DRAWINGS"])
def test_drawings_are_what_the_command_writes(name):
    stored = (ROOT / "docs" / "pictures" / f"{name}.svg").read_text(encoding="utf-8")
    assert stored == DRAW["svg"](DRAW["DRAWINGS"][name]), "run: python docs/pictures/draw.py"
