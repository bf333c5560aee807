"""Hugging Face `LlavaForConditionalGeneration` folders as a `VisionLanguageModel`, equal in logits.

Two key layouts are in circulation and both are read: the one of transformers 5 (`vision_tower.encoder...`) and the
older one of the hub (`vision_tower.vision_model.encoder...`), with or without the leading `model.` of a state dict.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlavaConfig

from mm.checkpoint import CONFIG_FILE, PREPROCESSOR_FILE, cast_state, load_state, read_json
from mm.vision import ImagePreprocessing, TowerConfig
from mm.vision.transformers_tower import MODEL_TYPES, config_of
from mm.vlm.config import PromptConfig, VLMConfig
from mm.vlm.language import architecture, read_tokenizer
from mm.vlm.model import VisionLanguageModel
from mm.vlm.prompt import takes_parts
from mm.vlm.weights import Renames, fill_tied, read_folder, rename

RENAMES: Renames = (
    (r"(model\.)?vision_tower\.(vision_model\.)?", "tower.module."),
    (r"(model\.)?multi_modal_projector\.linear_1\.", "projector.0."),
    (r"(model\.)?multi_modal_projector\.linear_2\.", "projector.2."),
    (r"model\.language_model\.", "backbone.model.model."),
    (r"language_model\.", "backbone.model."),
    (r"lm_head\.", "backbone.model.lm_head."),
)
PROCESSOR_FILE = "processor_config.json"
"""Where transformers 5 writes all parts of a processor together."""
VICUNA = "USER: {prompt} ASSISTANT:"
"""Prompt of LLaVA-1.5, for folders without a chat template."""


def load(folder: Path, *, dtype: torch.dtype | None, device: str | torch.device) -> VisionLanguageModel:
    """Read a LLaVA folder, strictly.

    Args:
        folder: Holds config.json and safetensors; preprocessing and tokenizer files if the model is to be asked.
        dtype: Dtype of the parameters; None: float32.
        device: Where the model goes.

    Raises:
        ValueError: a variant this host cannot reproduce (named), or weights that do not fit (all listed).
    """
    source = str(folder)
    hf = LlavaConfig.from_pretrained(folder, local_files_only=True)
    tokenizer = read_tokenizer(folder)
    config = convert_config(hf, folder, tokenizer)
    model = VisionLanguageModel(config, tokenizer=tokenizer)
    cast_state(model, dtype)
    tensors = rename(read_folder(folder), RENAMES, source=source)
    fill_tied(tensors, model)
    load_state(model, tensors, source=source)
    return model.to(device).eval()


def convert_config(hf: Any, folder: Path, tokenizer: Any) -> VLMConfig:
    """Our config for a Hugging Face LLaVA config."""
    vision = hf.vision_config
    for name, found, allowed in (
        ("vision_feature_layer", type(hf.vision_feature_layer).__name__, ("int",)),
        ("projector_hidden_act", hf.projector_hidden_act, ("gelu",)),
        ("vision_feature_select_strategy", hf.vision_feature_select_strategy, ("default", "full")),
        ("vision_config.model_type", vision.model_type, MODEL_TYPES),
    ):
        if found not in allowed:
            raise ValueError(f"{folder / CONFIG_FILE}: {name} is {found!r}, supported: {', '.join(allowed)}")
    return VLMConfig(
        tower=read_tower_config(vision, hf.vision_feature_layer, folder),
        language={"model_type": hf.text_config.model_type, **architecture(hf.text_config)},
        projector="mlp2x_gelu",
        projector_bias=bool(hf.multimodal_projector_bias),
        feature_select="drop_first" if hf.vision_feature_select_strategy == "default" else "all",
        image_token_id=int(hf.image_token_id),
        prompt=read_prompt(folder, tokenizer),
    )


def read_tower_config(vision: Any, layer: int, folder: Path) -> TowerConfig:
    """Tower of a Hugging Face vision config, with the folder's own preprocessing if it has any."""
    preprocessing = None
    if (folder / PREPROCESSOR_FILE).is_file():
        path = folder / PREPROCESSOR_FILE
        preprocessing = ImagePreprocessing.from_dict(read_json(path), source=str(path))
    elif (folder / PROCESSOR_FILE).is_file() and "image_processor" in (parts := read_json(folder / PROCESSOR_FILE)):
        preprocessing = ImagePreprocessing.from_dict(parts["image_processor"], source=str(folder / PROCESSOR_FILE))
    config = config_of(vision, layer, preprocessing)
    if config.preprocessing.size != vision.image_size:
        raise ValueError(
            f"{folder}: preprocessing makes pictures of {config.preprocessing.size} pixels, the tower takes "
            f"{vision.image_size}"
        )
    return config


def read_prompt(folder: Path, tokenizer: Any) -> PromptConfig:
    """The folder's chat template if it has one (kept with the tokenizer from here on), else LLaVA-1.5's prompt."""
    if tokenizer is None:
        return PromptConfig()
    if (folder / "chat_template.json").is_file():
        tokenizer.chat_template = read_json(folder / "chat_template.json")["chat_template"]
    if getattr(tokenizer, "chat_template", None) and takes_parts(tokenizer, "<image>"):
        return PromptConfig(format="chat")
    return PromptConfig(template=VICUNA)
