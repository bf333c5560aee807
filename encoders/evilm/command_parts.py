"""What the commands of `mm video` share: the model, and what is worth saying about texts and files."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mm.command import own_device

if TYPE_CHECKING:
    from mm.encoders.evilm.model import EViLM

DEFAULT_MODEL = "evilm_tiny"


def natural(text: str) -> int:
    """Option value: a whole number from 0."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0, got {text}")
    return int(text)


def add_model(parser: argparse.ArgumentParser, *, default: str | None = DEFAULT_MODEL) -> None:
    """Options about the model."""
    said = default or "that of the index"
    parser.add_argument("--model", default=default, help=f"shipped name, folder or hub id (default: {said})")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, mps")


def video_model(name: str, device: str) -> EViLM:
    """An E-ViLM that can read text.

    Raises:
        FileNotFoundError: nothing under that name.
        ValueError: another kind of model, or one without tokenizer.
    """
    from mm.encoders.evilm.model import EViLM

    model = EViLM.from_pretrained(name, device=own_device(device)).eval()
    if model.tokenizer is None:
        raise ValueError(f"{name}: was saved without a tokenizer; set model.tokenizer and save it again")
    return model


def unknown_words(model: EViLM, text: str) -> list[str]:
    """A sentence about words that the model does not know, if there are any."""
    found = list(dict.fromkeys(model.unknown_words(text)))
    if not found:
        return []
    return [f"this model does not know {', '.join(map(repr, found))} and reads any such word alike"]
