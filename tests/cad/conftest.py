"""Stored programs of the published converter, with what its executor makes of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parents[1] / "parity" / "data" / "openecad"


@dataclass(frozen=True)
class Part:
    """A part in all its stored forms."""

    name: str
    text: str
    deepcad: dict
    extrudes: list[dict]
    vector: dict | None

    @property
    def clean(self) -> bool:
        """No defect of the published code touches it."""
        return not any(extrude["defects"] for extrude in self.extrudes)


def stored(name: str) -> Any:
    return json.loads((DATA / name).read_text())


@cache
def all_parts() -> tuple[Part, ...]:
    shipped = []
    for path in sorted(DATA.glob("*.openecad.txt")):
        name = path.name.partition(".")[0]
        resolved = stored(f"{name}.resolved.json")
        vector = resolved["deepcad_vector"]
        text = path.read_text()
        shipped.append(Part(name, text, stored(f"{name}.deepcad.json"), resolved["resolved"]["extrudes"], vector))
    made = [Part(r["id"], r["text"], r["deepcad"], r["resolved"]["extrudes"], None) for r in stored("synthetic.json")]
    return (*shipped, *made)


@pytest.fixture(scope="session")
def parts() -> tuple[Part, ...]:
    return all_parts()


@pytest.fixture(scope="session")
def stored_json():
    return stored
