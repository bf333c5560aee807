"""Many samples on one sheet: pictures with their questions and answers below, to look at a data set."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mm.data.sample import VisualSample

PAPER, INK, ACCENT = (255, 255, 255), (40, 44, 52), (20, 110, 90)
GAP = 12
LINE = 16
"""Height of a line of text in pixels."""
FRAME_GAP = 3


def strip(images: Sequence[np.ndarray], height: int) -> Image.Image:
    """Pictures of one sample side by side at one height; small ones are enlarged without blurring."""
    scaled = []
    for image in images:
        picture = Image.fromarray(image)
        width = max(1, round(picture.width * height / picture.height))
        method = Image.Resampling.NEAREST if picture.height < height else Image.Resampling.LANCZOS
        scaled.append(picture.resize((width, height), method))
    sheet = Image.new("RGB", (sum(p.width + FRAME_GAP for p in scaled) - FRAME_GAP, height), PAPER)
    left = 0
    for picture in scaled:
        sheet.paste(picture, (left, 0))
        left += picture.width + FRAME_GAP
    return sheet


def shortened(text: str, width: int, lines: int) -> list[str]:
    """`text` in at most `lines` lines of about `width` pixels; what is left out becomes "..."."""
    wrapped = wrap(text, max(12, int(width / 6.2)))
    return wrapped if len(wrapped) <= lines else [*wrapped[: lines - 1], wrapped[lines - 1][:-3] + "..."]


def contact_sheet(
    samples: Sequence[VisualSample],
    *,
    columns: int = 4,
    height: int = 160,
    lines: int = 3,
    answers: Sequence[str] | None = None,
) -> Image.Image:
    """Draw samples in rows.

    Args:
        samples: What to show; those without pictures show their words alone.
        columns: Samples per row.
        height: Height of the pictures in pixels.
        lines: Lines of text below each; longer text ends in "...".
        answers: Answers of a model, one per sample, written beside the right ones.

    Returns:
        The sheet, mode RGB.

    Raises:
        ValueError: no samples, or another number of answers.
    """
    if not samples:
        raise ValueError("a contact sheet needs at least one sample")
    if answers is not None and len(answers) != len(samples):
        raise ValueError(f"{len(samples)} samples but {len(answers)} answers")
    strips = [strip(sample.images, height) if sample.images else None for sample in samples]
    width = max([height, *(picture.width for picture in strips if picture)])
    columns = min(columns, len(samples))
    cell = (width + GAP, height + (lines + 1) * LINE + GAP)
    rows = -(-len(samples) // columns)
    sheet = Image.new("RGB", (columns * cell[0] + GAP, rows * cell[1] + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=12)
    for index, (sample, picture) in enumerate(zip(samples, strips, strict=True)):
        left, top = GAP + index % columns * cell[0], GAP + index // columns * cell[1]
        if picture:
            sheet.paste(picture, (left, top))
        below = top + (height + 4 if picture else 0)
        asked = shortened(sample.question or sample.text, width, lines)
        draw.multiline_text((left, below), "\n".join(asked), INK, font, spacing=2)
        given = f"   model: {answers[index]}" if answers is not None else ""
        reply = shortened(f"{sample.answer}{given}", width, lines + 1 - len(asked))
        draw.multiline_text((left, below + len(asked) * LINE), "\n".join(reply), ACCENT, font, spacing=2)
    return sheet
