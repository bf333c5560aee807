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


@pytest.fixture(scope="session")
def tinyllava_folder(tmp_path_factory) -> Path:
    """A folder in the layout of the published checkpoints: CLIP tower, two-layer connector, Phi."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionModel

    from mm.cad.tokenizer import program_tokenizer
    from mm.vlm import build_projector

    folder = tmp_path_factory.mktemp("tinyllava")
    tokenizer = program_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = sizes | {"image_size": 32, "patch_size": 8}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text = sizes | special | {"vocab_size": len(tokenizer), "max_position_embeddings": 512}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tower = CLIPVisionModel(AutoConfig.for_model("clip_vision_model", **vision))
        language = AutoModelForCausalLM.from_config(AutoConfig.for_model("phi", **text))
        connector = build_projector("mlp2x_gelu", 32, 32)
    parts = {"vision_tower._vision_tower.vision_model": tower, "connector._connector": connector}
    parts["language_model"] = language
    tensors = {f"{prefix}.{key}": value for prefix, part in parts.items() for key, value in part.state_dict().items()}
    save_file({key: value.clone() for key, value in tensors.items()}, folder / "model.safetensors")
    config = {"model_type": "tinyllava", "connector_type": "mlp2x_gelu", "vision_feature_layer": -2}
    config |= {"text_config": text | {"model_type": "phi"}}
    config |= {"vision_config": vision | {"model_type": "clip_vision_model"}}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save_pretrained(folder)
    return folder
