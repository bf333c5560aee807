"""How an OpenECAD model is asked for a program, and how it answers: wording, fence, style, room."""

from __future__ import annotations

from dataclasses import dataclass

from mm.cad.emitter import Style

PROMPT = "program:"
"""Question behind the picture."""
MAX_NEW_TOKENS = 192
"""Longest program of the tiny model, tokens."""


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How a model was taught to be asked and to answer."""

    question: str = PROMPT
    """What is asked, behind the picture."""
    style: Style = "canonical"
    """Style of the programs it writes."""
    head: str = ""
    """Text before the program."""
    tail: str = ""
    """Text behind it."""
    grey: bool = True
    """Whether pictures are cut to the part and shown in grey; otherwise they go to the tower as they are."""
    max_new_tokens: int = MAX_NEW_TOKENS
    """Longest answer, tokens."""


PUBLISHED = Manner(
    question="This picture shows a 3D part. Write the OpenECAD program that builds it.",
    style="official",
    head="Of course, here are the codes:\n```python\n",
    tail="```",
    grey=False,
    max_new_tokens=2048,
)
"""Of checkpoints trained on LLaVA records such as `mm cad dataset` writes.

Deviation: the published sets word the question differently from release to release; set `model.manner` to yours."""
