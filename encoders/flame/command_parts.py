"""What the commands of `mm flame` share: models and pictures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm.command import own_device

if TYPE_CHECKING:
    import argparse

    from mm.encoders.flame.model import FlameImageEncoder
    from mm.encoders.flame.tower import TextTowerConfig


def text_config(name: str, layer: str | None, templates: str | None) -> TextTowerConfig:
    """The text tower behind a name: that of a FLAME image model, or a language model.

    Args:
        name: A shipped name, a folder or a hub id.
        layer: Instead of the model's own; a bare language model is read at its last block.
        templates: Instead of the model's own; a bare language model gets the authors' wording.

    Raises:
        FileNotFoundError: nothing under that name.
    """
    from mm.checkpoint import CONFIG_FILE, config_from_dict, read_json, resolve
    from mm.encoders.flame.config import FlameVisionConfig
    from mm.encoders.flame.model import FlameImageEncoder
    from mm.encoders.flame.sentence import is_sentence_folder
    from mm.encoders.flame.tower import TextTowerConfig

    changes: dict[str, Any] = {
        key: value for key, value in (("layer", layer), ("templates", templates)) if value is not None
    }
    folder = resolve(name)
    if is_sentence_folder(folder):
        if changes:
            raise ValueError(f"{name}: a sentence model has neither layers nor templates to choose ({list(changes)})")
        return TextTowerConfig(language=str(folder))
    data = read_json(folder / CONFIG_FILE)
    if data.get("model_class") == f"{FlameImageEncoder.__module__}:{FlameImageEncoder.__qualname__}":
        config: FlameVisionConfig = config_from_dict(FlameVisionConfig, data["config"], source=str(folder))
        return replace(config.text, **changes)
    return TextTowerConfig(**({"language": name, "layer": "-1"} | changes))


def image_model(arguments: argparse.Namespace) -> FlameImageEncoder:
    """The image encoder that --model names, on its device."""
    from mm.encoders.flame.model import FlameImageEncoder

    return FlameImageEncoder.from_pretrained(arguments.model, device=own_device(arguments.device)).eval()


def text_tower(model: FlameImageEncoder, arguments: argparse.Namespace) -> Any:
    """The text tower that an image model was trained against.

    Raises:
        ValueError: it has another width than the image model.
    """
    from mm.encoders.flame.store_writer import ready_tower

    config = replace(model.config.text, language=arguments.text) if arguments.text else model.config.text
    tower = ready_tower(config, device=own_device(arguments.device), dtype=arguments.dtype)
    if tower.width != model.width:
        raise ValueError(
            f"{arguments.model} speaks in {model.width} channels, its text tower {config.language} in {tower.width}; "
            "name the language model it was trained against with --text"
        )
    return tower


def add_model(parser: argparse.ArgumentParser) -> None:
    """Options of every command that needs both towers."""
    parser.add_argument("--model", default="flame_tiny", help="shipped name, folder or hub id (default: flame_tiny)")
    parser.add_argument("--text", metavar="NAME", help="where the text tower lies, if not where the model says")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, mps")
    parser.add_argument("--dtype", help="of the text tower: float16, bfloat16, float32 (default: that of its weights)")


def picture_files(paths: Iterable[str]) -> list[Path]:
    """Files, and the pictures below folders, by name.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: a folder without pictures.
    """
    from mm.data.image_folder import SUFFIXES

    found: list[Path] = []
    for name in paths:
        path = Path(name)
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such picture or folder")
        inside = [path]
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        if not inside:
            raise ValueError(f"{path}: no pictures below it; looked for {', '.join(SUFFIXES)}")
        found += inside
    return found
