"""The language half of a saved model: its Hugging Face config as plain data, and its tokenizer files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from mm.backbone import LanguageBackbone
from mm.backbone.openelm import register_openelm

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_NOT_ARCHITECTURE = ("transformers_version", "architectures", "_name_or_path", "dtype", "torch_dtype")


def language_config(backbone: LanguageBackbone) -> dict[str, Any]:
    """What `build_language` needs to build the same architecture again."""
    config = backbone.config
    return {"model_type": config.model_type, **architecture(config)}


def architecture(config: Any) -> dict[str, Any]:
    """A Hugging Face config as plain data, without what only describes where it came from."""
    return {key: value for key, value in config.to_diff_dict().items() if key not in _NOT_ARCHITECTURE}


def build_language(config: dict[str, Any]) -> LanguageBackbone:
    """A random language model in float32 for a Hugging Face config.

    Raises:
        ValueError: a model type that transformers does not know.
    """
    return LanguageBackbone(AutoModelForCausalLM.from_config(hugging_face_config(config)))


def hugging_face_config(config: dict[str, Any]) -> Any:
    """Plain data with its `model_type` -> Hugging Face config, also of the families this toolkit adds (OpenELM)."""
    register_openelm()
    sizes = dict(config)
    return AutoConfig.for_model(sizes.pop("model_type"), **sizes)


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder, or None if it holds none."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
