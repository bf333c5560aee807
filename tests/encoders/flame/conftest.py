"""The language model and tokenizer of the text fixture, and short cuts around them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

DATA = Path(__file__).parents[2] / "parity" / "data"


def read(name):
    with safe_open(DATA / name, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.fixture(scope="session")
def text():
    """Published numbers of the text side: model, tokenizer, captions, tensors."""
    tensors, meta = read("flame_text.safetensors")
    model = MistralForCausalLM(MistralConfig(**json.loads(meta["config"]))).eval()
    head = "weights."
    model.load_state_dict({key[len(head) :]: value for key, value in tensors.items() if key.startswith(head)})
    names = {key: meta[key] for key in ("bos_token", "eos_token", "unk_token", "pad_token")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(meta["tokenizer_json"]), **names)
    captions, layer = json.loads(meta["captions"]), meta["layer"]
    return SimpleNamespace(model=model, tokenizer=tokenizer, captions=captions, layer=layer, tensors=tensors)


@pytest.fixture
def encoder(text):
    """Builds a text encoder on the fixture's language model; keyword arguments are its options."""
    from mm.encoders.flame import FacetTextEncoder

    def build(**options):
        return FacetTextEncoder(text.model, text.tokenizer, **{"layer": text.layer} | options)

    return build


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, relative to the largest value."""
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max())
