"""The examples in the docstrings are right."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import mm.cad

MODULES = sorted(path.stem for path in Path(mm.cad.__file__).parent.glob("*.py") if ">>> " in path.read_text())


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    found = doctest.testmod(importlib.import_module(f"mm.cad.{name}"))
    assert found.attempted > 0 and found.failed == 0
