"""The text tower behind a name: a decoder with facets, or an encoder with one sentence embedding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mm.encoders.flame.facets import Positions
from mm.encoders.flame.sentence import SentenceTextEncoder, is_sentence_folder
from mm.encoders.flame.templates import template_set
from mm.encoders.flame.text import FacetTextEncoder
from mm.training.parts import load_language


@dataclass(frozen=True, kw_only=True)
class TextTowerConfig:
    """Which frozen language model speaks for the captions, and how it is asked."""

    language: str = "mistralai/Mistral-Nemo-Instruct-2407"
    """A shipped name, a folder or a hub id of a causal LM, or a folder in sentence-transformers layout."""
    layer: str = "39"
    """Block whose output is read, counted from 1; "38_39" averages two, "-1" is the last. Unused by sentence models."""
    templates: str = "official"
    """Template set: official (the authors' wording) or world (for the tiny language model)."""
    positions: Positions = "consecutive"
    """Position ids of the facets: consecutive (published) or reset."""
    max_tokens: int = 1024
    """Most tokens of a caption."""

    def __post_init__(self) -> None:
        template_set(self.templates)


def load_text_tower(config: TextTowerConfig) -> FacetTextEncoder | SentenceTextEncoder:
    """Read the frozen text tower.

    Raises:
        FileNotFoundError: nothing under that name.
        ValueError: the folder holds something else, or the layer does not exist.
    """
    if Path(config.language).is_dir() and is_sentence_folder(config.language):
        return SentenceTextEncoder.from_folder(config.language)
    return FacetTextEncoder(
        load_language(config.language),
        layer=config.layer,
        templates=config.templates,
        positions=config.positions,
        max_tokens=config.max_tokens,
    )
