"""Pictures with an easy and a hard question each: colour survives half the resolution, the weave does not.

The upper half of a picture is one colour with noise. The lower half carries two fields of single-pixel weave: rows,
columns or checks. At half the side each becomes the same grey: the nine weaves can only be told apart in the full
picture. Every picture comes with both questions, so that no policy can tell hard from easy by looking.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

SIDE = 32
COLOURS = {
    "red": (215, 40, 40),
    "green": (40, 160, 60),
    "blue": (45, 70, 215),
    "yellow": (230, 205, 40),
    "purple": (140, 60, 170),
    "orange": (240, 140, 30),
    "cyan": (50, 190, 200),
    "brown": (120, 75, 40),
    "pink": (240, 150, 185),
}
WEAVES = ("linen", "twill", "satin", "denim", "tweed", "canvas", "velvet", "muslin", "damask")
"""Names of the nine pairs of fields, left times right, each of rows, columns, checks."""
QUESTIONS = {"easy": "what colour ?", "hard": "what weave ?"}
CHANCE = 1 / 9
"""Both questions have nine answers, equally often."""

Kind = Literal["easy", "hard"]


@dataclass(frozen=True)
class WeaveSample:
    """One picture with one of its questions."""

    image: Image.Image
    kind: Kind
    question: str
    answer: str


def weave_sample(seed: int) -> WeaveSample:
    """The sample of a seed: seeds 2 k and 2 k + 1 share a picture and differ in the question.

    Example:
        >>> weave_sample(6).image == weave_sample(7).image, weave_sample(6).question, weave_sample(7).question
        (True, 'what colour ?', 'what weave ?')
    """
    rng = np.random.default_rng([seed // 2, 20_251])
    colour, weave = int(rng.integers(9)), int(rng.integers(9))
    pixels = np.empty((SIDE, SIDE, 3))
    pixels[: SIDE // 2] = list(COLOURS.values())[colour] + rng.normal(0, 12, (SIDE // 2, SIDE, 3))
    fields = [_field(which, rng.normal(125, 15)) for which in (weave // 3, weave % 3)]
    pixels[SIDE // 2 :] = np.concatenate(fields, 1)[..., None] + rng.normal(0, 10, (SIDE // 2, SIDE, 3))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    kind: Kind = "hard" if seed % 2 else "easy"
    answer = WEAVES[weave] if kind == "hard" else list(COLOURS)[colour]
    return WeaveSample(image, kind, QUESTIONS[kind], answer)


def words() -> list[str]:
    """Every text that questions and answers are made of."""
    return [*QUESTIONS.values(), *COLOURS, *WEAVES, "look"]


def _field(which: int, mean: float) -> np.ndarray:
    """(16, 16) of alternating dark and light pixels in rows, columns or checks, fading towards its border.

    A sharp border would leak through the filter; faded, what halving leaves of the pattern is less than one grey level.
    """
    row, column = np.indices((SIDE // 2, SIDE // 2))
    edge = np.arange(SIDE // 2) + 0.5
    fade = np.clip(np.minimum(edge, SIDE // 2 - edge) / 5, 0, 1)
    sign = np.where((row, column, row + column)[which] % 2, 1.0, -1.0)
    return mean + 80 * sign * np.outer(fade, fade)
