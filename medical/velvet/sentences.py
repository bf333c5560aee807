"""From a radiology report to its sentences."""

from __future__ import annotations

import re
from typing import Literal

LABELS = ("Title:", "presentation:", "patient:", "Age:", "Gender:", "study_findings:", "discussion:")
"""Field names of M3D-style reports, removed wherever they stand."""
LONG = 30
"""Words beyond which a paragraph with line breaks is cut at them, in the published rule."""

_END = re.compile(r"(?<=[.!?])")
_CLEAN_END = re.compile(r"(?<=[.!?])(?=\s|[A-Z])(?![.!?])")


def split_sentences(report: str, style: Literal["clean", "published"] = "clean") -> list[str]:
    """Cut a report into sentences.

    Args:
        report: Plain text; three or more line breaks separate sections.
        style: published: cut after every . ! ?, which also cuts "3.5 cm" and makes sentences of a lone mark. clean:
            cut only where a blank or a capital follows, and drop pieces without a letter or digit.

    Returns:
        Sentences in order, each with its mark; empty for a text without any.

    Example:
        >>> split_sentences("A cyst of 3.5 cm. No mass!?")
        ['A cyst of 3.5 cm.', 'No mass!?']

    Source: text preparation of the published code. Deviation: clean is the default.
    """
    if style not in ("clean", "published"):
        raise ValueError(f"style must be 'clean' or 'published', got {style!r}")
    text = report.replace("\xa0", " ")
    for label in LABELS:
        text = text.replace(label, "")
    sentences: list[str] = []
    for section in re.split(r"\n{3,}", text):
        for piece in (_END if style == "published" else _CLEAN_END).split(section):
            sentences += _lines(piece.strip())
    if style == "published":
        return sentences
    tidy = [" ".join(sentence.split()) for sentence in sentences]
    return [sentence for sentence in tidy if re.search(r"\w", sentence)]


def _lines(piece: str) -> list[str]:
    """A long piece is cut at its line breaks, in others they become blanks."""
    if "\n" in piece and len(piece.split()) > LONG:
        return [line for line in piece.split("\n") if line]
    return [piece.replace("\n", " ")] if piece else []
