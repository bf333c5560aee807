"""Folders in the layout of the published checkpoints: Qwen2.5-VL with old and with new key prefixes."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen2_5_VLForConditionalGeneration

from mm.pruning.visionthink.tiny import tiny_processor, tiny_vlm
from mm.vlm import VisionLanguageModel

OLD = {"model.visual.": "visual.", "model.language_model.": "model."}
"""New prefix -> the one that transformers before 4.52 wrote."""


def renamed(key: str) -> str:
    for new, old in OLD.items():
        if key.startswith(new):
            return old + key.removeprefix(new)
    return key


@pytest.mark.parametrize("layout", ["old", "new"])
def test_both_key_prefixes_are_read(layout, tmp_path):
    model = tiny_vlm(tiny_processor(["red"]).tokenizer, seed=3)
    tensors = {key: value.clone() for key, value in model.state_dict().items()}
    model.save_pretrained(tmp_path)
    stored = {renamed(key): value for key, value in tensors.items()} if layout == "old" else tensors
    assert ("visual.patch_embed.proj.weight" in stored) == (layout == "old")
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "qwen2_5_vl"
    read = VisionLanguageModel.from_pretrained(tmp_path)
    assert isinstance(read.model, Qwen2_5_VLForConditionalGeneration)
    found = read.model.state_dict()
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], tensors[key]) for key in tensors)
