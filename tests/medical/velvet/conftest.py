"""The parity fixtures as dictionaries, and a small model with the sizes of the text fixture."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from mm.medical.velvet.config import TextConfig, VelvetConfig, VisionConfig
from mm.medical.velvet.model import VelvetModel
from mm.medical.velvet.tokenizer import SentenceTokenizer

DATA = Path(__file__).parents[2] / "parity" / "data"


def read(name: str) -> SimpleNamespace:
    with safe_open(DATA / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return SimpleNamespace(meta=json.loads(file.metadata()["meta"]), get=tensors.__getitem__, all=tensors)


@pytest.fixture(scope="session")
def losses():
    return read("velvet_losses")


@pytest.fixture(scope="session")
def tribert():
    return read("velvet_tribert")


@pytest.fixture(scope="session")
def vision():
    return read("velvet_vision")


def small_text(**changes: object) -> TextConfig:
    sizes = {"vocab_size": 40, "width": 16, "feed_forward": 24, "layers": 2, "fusion_layers": 2, "num_heads": 2}
    sizes |= {"max_tokens": 64, "max_sentences": 6, "dropout": 0.0}
    return TextConfig(**(sizes | changes))


def small_vision(**changes: object) -> VisionConfig:
    sizes = {"embed_dim": 6, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2), "window_size": 3, "volume_size": 32}
    return VisionConfig(**(sizes | changes))


@pytest.fixture
def small_model():
    torch.manual_seed(0)
    return VelvetModel(VelvetConfig(vision=small_vision(), text=small_text(), contrastive_width=8)).eval()


@pytest.fixture
def small_tokenizer():
    words = ["no", "cyst", "##s", "liver", "kidney", "left", "right", "large", ".", ",", "the", "in", "is", "normal"]
    return SentenceTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words], max_sentences=6, max_tokens=64)
