"""FlowCut against numbers of the published reference implementation (tiny random CLIP, float32, CPU)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import CLIPVisionConfig, CLIPVisionModel

from mm.pruning import FlowCut

DATA = Path(__file__).parents[1] / "parity" / "data" / "flowcut_clip.safetensors"


@pytest.fixture(scope="module")
def reference():
    with safe_open(DATA, "pt") as file:
        config = CLIPVisionConfig(**json.loads(file.metadata()["config"]))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    model = CLIPVisionModel(config).eval()
    head = "weights.vision_model."
    model.load_state_dict({name[len(head) :]: value for name, value in tensors.items() if name.startswith(head)})
    assert model.config._attn_implementation == "sdpa"
    return model, tensors


def close(found, expected):
    """Relative to the size of the features: 1e-5 of their largest value, in float32."""
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize("target", [16, 48])
@pytest.mark.parametrize("picture", [0, 1, 2])
@pytest.mark.parametrize("alone", [True, False])
def test_single(reference, target, picture, alone):
    """Per-sample mode gives the single-picture numbers, alone and inside a batch."""
    model, tensors = reference
    pixel_values = tensors["pixel_values"][picture : picture + 1] if alone else tensors["pixel_values"]
    row = 0 if alone else picture
    with torch.no_grad():
        out = FlowCut(target_tokens=target).encode(model, pixel_values)
    expected = f"expected.single.{target}."
    assert torch.equal(out.keep_indices[row], tensors[f"{expected}keep.{picture}"])
    # the reference also runs the last block, whose output nobody reads
    assert torch.equal(out.tokens_per_layer[row], tensors[f"{expected}tokens_per_layer.{picture}"][:-1])
    close(out.tokens[row], tensors[f"{expected}features.{picture}"])


@pytest.mark.parametrize("target", [16, 48])
def test_batch_maximum(reference, target):
    model, tensors = reference
    with torch.no_grad():
        out = FlowCut(target_tokens=target, batch_mode="max").encode(model, tensors["pixel_values"])
    expected = f"expected.batchmax.{target}."
    assert torch.equal(out.keep_indices, tensors[f"{expected}keep"])
    assert torch.equal(out.tokens_per_layer[0], tensors[f"{expected}tokens_per_layer"][:-1])
    close(out.tokens, tensors[f"{expected}features"])
    assert out.keep is None
