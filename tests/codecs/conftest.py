"""Fixtures of the published reference implementation, read once."""

import json
from functools import cache
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

DATA = Path(__file__).parents[1] / "parity" / "data"


class Parity(dict):
    """Tensors of one file, with its weights under the published names and its settings."""

    def __init__(self, name):
        path = DATA / f"semanticodec_{name}.safetensors"
        super().__init__(load_file(path))
        with safe_open(path, "pt") as file:
            self.metadata = file.metadata()
        self.weights = {key[8:]: value for key, value in self.items() if key.startswith("weights.")}


@pytest.fixture(scope="session")
def parity():
    return cache(Parity)


@pytest.fixture(scope="session")
def tables():
    return json.loads((DATA / "semanticodec_tables.json").read_text())


@pytest.fixture(scope="session")
def layout():
    return json.loads((DATA / "semanticodec_checkpoint_layout.json").read_text())


@pytest.fixture(scope="session")
def relative_error():
    """Largest difference relative to the largest value."""
    return lambda found, expected: float((found - expected).abs().max() / expected.abs().max())
