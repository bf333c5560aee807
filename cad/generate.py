"""From a picture to the one program that explains it best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mm.cad.data import SIZE
from mm.cad.drawing import render
from mm.cad.model import OpenECAD
from mm.cad.rerank import Checked, best
from mm.cad.seeing import as_seen
from mm.checkpoint import write_aside
from mm.vision import load_image

SIDE = 320
"""Side of each half of the comparison, pixels."""


def generate(
    model: OpenECAD, picture: Any, *, samples: int = 8, seed: int = 0, constrained: bool = True, **options: Any
) -> Checked:
    """The best of 1 + `samples` candidate programs by likeness of their drawings to the picture.

    Args:
        model: Proposes programs.
        picture: File, array or PIL image: a part on a white ground.
        samples: Candidates beside the greedy one.
        seed: Of the candidates.
        constrained: Only let the model write what the grammar allows.
        options: Further options of `OpenECAD.propose`.

    Returns:
        Program, solid and agreement; `.uncertain` if the drawing does not fit the picture.

    Raises:
        ValueError: the picture cannot be read or shows nothing.
    """
    (candidates,) = model.propose([picture], samples=samples, seed=seed, constrained=constrained, **options)
    return best(candidates, as_seen(picture, SIZE))


def compare_sheet(picture: Any, found: Checked, path: str | Path) -> None:
    """Write the picture and the drawing of the answer side by side; an empty right half if there is no solid."""
    left = np.asarray(load_image(picture).resize((SIDE, SIDE)), dtype=np.uint8)
    blank = np.full((SIDE, SIDE, 3), 255, dtype=np.uint8)
    right = blank if found.solid is None else render(found.solid, size=SIDE)
    with write_aside(path) as temporary:
        Image.fromarray(np.hstack([left, right])).save(temporary)
