"""Networks that belong to a model and lie beside it: `my-velvet/`, `my-velvet_segmenter/`, `my-velvet_writer/`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

from torch import nn

from mm.checkpoint import CONFIG_FILE, load

logger = logging.getLogger(__name__)
Part = Literal["segmenter", "writer"]
HOW_TO_TRAIN: dict[Part, str] = {
    "segmenter": "train one with `python -m mm.medical.velvet.transfer --help` and save it as MODEL_segmenter beside "
    "the model folder MODEL, or pass it: model.attach(segmenter=FOLDER)",
    "writer": "train one with `mm fit --config medical/writer --model.init_args.model_path MODEL` and save it as "
    "MODEL_writer beside the model folder MODEL, or pass it: model.attach(writer=FOLDER)",
}
"""What a missing part's error says."""


class MissingPartError(ValueError):
    """The model was saved without the part that a task needs."""

    def __init__(self, part: Part, task: str) -> None:
        super().__init__(f"{task} needs a {part}, and this model has none: {HOW_TO_TRAIN[part]}")
        self.part = part


def part_class(part: Part) -> type[nn.Module]:
    """The class that plays a part."""
    if part == "segmenter":
        from mm.medical.velvet.segmenter import Segmenter

        return Segmenter
    from mm.medical.tasks.writer import Writer

    return Writer


def checked(part: Part, given: nn.Module | str | Path) -> nn.Module:
    """A part as an object: itself, or read from a shipped name or folder.

    Raises:
        ValueError: it is something else.
    """
    found: Any = given if isinstance(given, nn.Module) else load(given)
    if not isinstance(found, part_class(part)):
        raise ValueError(f"a {part} is a {part_class(part).__name__}, got a {type(found).__name__}")
    return found.eval()


def beside(folder: Path | None, part: Part) -> nn.Module | None:
    """The part that lies beside a model's folder, or None."""
    if folder is None:
        return None
    place = folder.parent / f"{folder.name}_{part}"
    if not (place / CONFIG_FILE).is_file():
        return None
    logger.info("%s beside the model: %s", part, place)
    return checked(part, place)
