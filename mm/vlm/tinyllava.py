"""TinyLLaVA folders (OpenELM, Gemma, Phi-2 with CLIP or SigLIP) as a `VisionLanguageModel`.

Key layout: `vision_tower._vision_tower.vision_model.*`, `connector._connector.0|2.*`, `language_model.*`. Two habits of
these weights have to be repeated: the first tower token is dropped even where it is a patch (SigLIP), and a Gemma was
trained with all its inputs multiplied by sqrt(width), picture tokens included.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mm.checkpoint import CONFIG_FILE, cast_state, load_state, read_json
from mm.vision.transformers_tower import MODEL_TYPES
from mm.vlm.config import ProjectorKind, PromptConfig, VLMConfig
from mm.vlm.hf_llava import read_tower_config
from mm.vlm.language import architecture, hugging_face_config, read_tokenizer
from mm.vlm.model import VisionLanguageModel
from mm.vlm.processor import with_image_token
from mm.vlm.weights import Renames, fill_tied, read_folder, rename

RENAMES: Renames = (
    (r"vision_tower\._vision_tower\.(vision_model\.)?", "tower.module."),
    (r"connector\._connector\.", "projector."),
    (r"language_model\.", "backbone.model."),
)
CONNECTORS: dict[str, ProjectorKind] = {"mlp2x_gelu": "mlp2x_gelu", "linear": "linear"}
PLACEHOLDER_ID = -200
"""Image id of TinyLLaVA, for folders without a tokenizer; no word can have it."""
PROMPT = "USER: {prompt} ASSISTANT:"
"""One turn; the same for the published OpenELM, Gemma and Phi-2 models."""


def load(folder: Path, *, dtype: torch.dtype | None, device: str | torch.device) -> VisionLanguageModel:
    """Read a TinyLLaVA folder (merged weights, safetensors), strictly.

    Raises:
        ValueError: another connector, tower or feature rule (named), or weights that do not fit (all listed).
    """
    source = str(folder)
    tensors = rename(read_folder(folder), RENAMES, source=source)
    tokenizer = read_tokenizer(folder)
    config = convert_config(read_json(folder / CONFIG_FILE), folder, tokenizer, tensors)
    model = VisionLanguageModel(config, tokenizer=tokenizer)
    cast_state(model, dtype)
    fill_tied(tensors, model)
    load_state(model, tensors, source=source)
    return model.to(device).eval()


def convert_config(data: dict[str, Any], folder: Path, tokenizer: Any, tensors: dict[str, Any]) -> VLMConfig:
    """Our config for a TinyLLaVA config.json."""
    path = folder / CONFIG_FILE
    for name, known in (("connector_type", tuple(CONNECTORS)), ("vision_feature_select_strategy", ("patch",))):
        found = data.get(name, known[0])
        if found not in known:
            raise ValueError(f"{path}: {name} is {found!r}, supported: {', '.join(known)}")
    language = _sub_config(data, "text_config", path)
    vision_data = dict(_sub_config(data, "vision_config", path))
    vision_type = vision_data.pop("model_type")
    if vision_type not in MODEL_TYPES:
        raise ValueError(f"{path}: vision_config.model_type is {vision_type!r}, supported: {', '.join(MODEL_TYPES)}")
    if vision_type == "siglip_vision_model":  # the pooling head was dropped from some files
        vision_data["vision_use_head"] = any(key.startswith("tower.module.head.") for key in tensors)
    image_token_id = PLACEHOLDER_ID
    if tokenizer is not None:
        image_token_id = with_image_token(tokenizer, "<image>").convert_tokens_to_ids("<image>")
    gemma = language["model_type"] == "gemma"
    return VLMConfig(
        tower=read_tower_config(
            hugging_face_config({"model_type": vision_type, **vision_data}),
            int(data.get("vision_feature_layer", -2)),
            folder,
        ),
        language=language,
        projector=CONNECTORS[data.get("connector_type", "mlp2x_gelu")],
        feature_select="drop_first",
        feature_scale="sqrt_width" if gemma else "none",
        image_token_id=image_token_id,
        prompt=PromptConfig(template=PROMPT),
    )


def _sub_config(data: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    """`text_config` or `vision_config` as plain architecture."""
    found = data.get(name)
    if not isinstance(found, dict) or "model_type" not in found:
        raise ValueError(f"{path}: {name} with its model_type is missing; this is no TinyLLaVA config")
    config = hugging_face_config(found)
    return {"model_type": found["model_type"], **architecture(config)}
