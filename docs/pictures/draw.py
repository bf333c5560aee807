"""The idea of each system as a small drawing: `python docs/pictures/draw.py` writes one SVG per entry beside this file.

A drawing is rows of boxes joined by arrows, and links between boxes of different rows. Kinds: data (white), frozen
(grey), trained (blue), result (green).
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

HERE = Path(__file__).parent
FILL = {"data": "#ffffff", "frozen": "#d9dee6", "trained": "#bcd6f2", "result": "#c9e8cf"}
MARGIN, LABEL, GAP, HEIGHT, ROW, LETTER = 16, 128, 34, 50, 96, 7.1
"""Pixels: around the drawing, for a row's name, between boxes, of a box, from row to row, of a letter."""


@dataclass(frozen=True)
class Drawing:
    """What one system does."""

    title: str
    """Read out where the picture cannot be seen."""
    rows: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    """(Name, boxes); a box is (text with line breaks, kind); an empty kind leaves a gap of that text's width."""
    links: tuple[tuple[tuple[int, int], tuple[int, int]], ...] = ()
    """Arrows from (row, box) to (row, box)."""


def row(name: str, *boxes: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """A row from "kind: text" words; "/" breaks a line."""
    parts = (box.partition(": ") for box in boxes)
    return name, tuple((text.replace(" / ", "\n"), kind) for kind, _, text in parts)


DRAWINGS = {
    "lavi": Drawing(
        "Concatenation puts hundreds of visual tokens between the words; LaVi changes the norms of the language model.",
        (
            row(
                "concatenation",
                "data: picture",
                "frozen: vision / tower",
                "trained: 576 visual / tokens",
                "data: + words",
                "frozen: language model reads / 600 tokens per layer",
                "result: answer",
            ),
            row(
                "LaVi",
                "data: picture",
                "frozen: vision / tower",
                "trained: conditioner: each / word asks the picture",
                "trained: scale and shift / of the norms",
            ),
            row(
                "",
                "data: words",
                ": " + "x" * 34,
                "frozen: language model reads / 25 tokens per layer",
                "result: answer",
            ),
        ),
        links=(((1, 3), (2, 2)), ((2, 0), (1, 2))),
    ),
    "flame": Drawing(
        "A frozen language model reads each caption through several questions; the image encoder learns to meet them.",
        (
            row(
                "text, once",
                "data: long caption",
                "frozen: language model, / one pass",
                "data: category? colour? / mood? place? …",
                "data: one vector per / question, stored",
            ),
            row("training", "data: picture", "trained: image encoder", "data: one vector", "result: contrast"),
        ),
        links=(((0, 3), (1, 3)),),
    ),
    "flowcut": Drawing(
        "Visual tokens leave while the encoder runs, rated by the information that flows through them.",
        (
            row(
                "encoder",
                "data: 576 patches",
                "frozen: blocks 1, 2",
                "data: fewer",
                "frozen: blocks 3, 4",
                "data: fewer",
                "frozen: blocks 5, …",
                "result: the target",
            ),
            row(
                "rating",
                "data: attention of the class token x likeness / to its values x size of the values",
                "data: summed over / the blocks so far",
            ),
        ),
        links=(((1, 1), (0, 2)), ((1, 1), (0, 4))),
    ),
    "visionthink": Drawing(
        "A first look at a quarter of the pixels; the full picture comes when the model asks for it.",
        (
            row(
                "first look",
                "data: a quarter of / the pixels",
                "trained: chat model",
                "result: answer: 0.25 of / the visual tokens",
            ),
            row(
                "on request",
                "data: the full / picture",
                "trained: the same model, / from its cache",
                "result: answer: 1.25 of / the visual tokens",
            ),
        ),
        links=(((0, 1), (1, 1)),),
    ),
    "evilm": Drawing(
        "A thin video network learns by naming the hidden: the codes that a semantic tokenizer gives to blanked cells.",
        (
            row("targets", "data: clean clip", "frozen: semantic / tokenizer", "data: one code / per cell"),
            row(
                "video",
                "data: masked clip",
                "trained: thin / video trunk",
                "trained: three / fusion layers",
                "result: codes, words, / does it match?",
            ),
            row("text", "data: masked words", "trained: word / embeddings"),
        ),
        links=(((0, 2), (1, 3)), ((2, 1), (1, 2))),
    ),
    "semanticodec": Drawing(
        "Sound becomes pairs of tokens, what it is and what that lost; a diffusion model turns them back into sound.",
        (
            row(
                "encode",
                "data: sound",
                "frozen: AudioMAE",
                "frozen: nearest of the / k-means centres",
                "result: semantic tokens",
            ),
            row(
                "",
                ": xxxxxxxxxxxx",
                "trained: acoustic encoder: / what the centre lost",
                "trained: vector / quantiser",
                "result: acoustic tokens",
            ),
            row(
                "decode",
                "data: pairs of tokens",
                "trained: latent / diffusion",
                "trained: mel decoder / and vocoder",
                "result: sound",
            ),
        ),
        links=(((0, 1), (1, 1)), ((0, 2), (1, 1))),
    ),
    "cad": Drawing(
        "A picture becomes a program that a person can read and edit, and a kernel builds the solid from it.",
        (
            row(
                "picture to part",
                "data: picture",
                "trained: vision- / language model",
                "data: program: sketches / and extrudes",
                "frozen: parser, / never executed",
                "frozen: CAD kernel",
                "result: STEP, mesh, / drawing",
            ),
            row("by hand", "data: edit a number", "data: a report of / what moves"),
        ),
        links=(((1, 0), (0, 2)),),
    ),
    "velvet": Drawing(
        "A CT volume and its report are tied at three levels: words, sentences and the whole report.",
        (
            row("volume", "data: CT volume", "trained: 3-D Swin", "data: 1,728 regions, / 216 regions, the scan"),
            row(
                "report",
                "data: report",
                "trained: TriBERT",
                "data: words, sentences, / the report",
                "result: contrast at / three levels",
            ),
        ),
        links=(((0, 2), (1, 3)),),
    ),
}


def svg(drawing: Drawing) -> str:
    """The drawing as an SVG document."""
    places = _places(drawing)
    width = max(x + w for x, _, w in places.values()) + MARGIN
    height = MARGIN + ROW * (len(drawing.rows) - 1) + HEIGHT + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="#1d2430">',
        f"<title>{html.escape(drawing.title)}</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#5b6675"/></marker></defs>',
        f'<rect width="{width:.0f}" height="{height}" rx="8" fill="#f6f8fb"/>',
    ]
    parts += [_arrow(places[a], places[b]) for a, b in drawing.links]
    for number, (name, boxes) in enumerate(drawing.rows):
        middle = MARGIN + number * ROW + HEIGHT / 2
        parts.append(
            f'<text x="{MARGIN}" y="{middle + 4:.0f}" font-weight="600" fill="#2563a8">{html.escape(name)}</text>'
        )
        seen = [index for index, (_, kind) in enumerate(boxes) if kind]
        parts += [_box(places[number, index], *boxes[index]) for index in seen]
        parts += [_arrow(places[number, a], places[number, b]) for a, b in pairwise(seen)]
    return "\n".join([*parts, "</svg>\n"])


def _places(drawing: Drawing) -> dict[tuple[int, int], tuple[float, float, float]]:
    """(Row, box) -> left, top and width."""
    places = {}
    for number, (_, boxes) in enumerate(drawing.rows):
        x = float(MARGIN + LABEL)
        for index, (text, _) in enumerate(boxes):
            width = max(len(line) for line in text.splitlines()) * LETTER + 20
            places[number, index] = (x, float(MARGIN + number * ROW), width)
            x += width + GAP
    return places


def _box(place: tuple[float, float, float], text: str, kind: str) -> str:
    x, y, width = place
    lines = text.splitlines()
    first = y + HEIGHT / 2 + 4 - 8 * (len(lines) - 1)
    words = "".join(
        f'<text x="{x + width / 2:.0f}" y="{first + 16 * number:.0f}" text-anchor="middle">{html.escape(line)}</text>'
        for number, line in enumerate(lines)
    )
    return (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{HEIGHT}" rx="6" fill="{FILL[kind]}" '
        f'stroke="#5b6675"/>{words}'
    )


def _arrow(start: tuple[float, float, float], end: tuple[float, float, float]) -> str:
    """Between neighbours of a row from side to side, between rows from edge to edge."""
    (x1, y1, w1), (x2, y2, w2) = start, end
    if y1 == y2:
        points = (x1 + w1, y1 + HEIGHT / 2, x2, y2 + HEIGHT / 2)
    else:
        points = (x1 + w1 / 2, y1 + (HEIGHT if y2 > y1 else 0), x2 + w2 / 2, y2 + (0 if y2 > y1 else HEIGHT))
    a, b, c, d = (f"{value:.0f}" for value in points)
    return f'<line x1="{a}" y1="{b}" x2="{c}" y2="{d}" stroke="#5b6675" stroke-width="1.4" marker-end="url(#tip)"/>'


if __name__ == "__main__":
    for name, drawing in DRAWINGS.items():
        (HERE / f"{name}.svg").write_text(svg(drawing), encoding="utf-8")
        print(HERE / f"{name}.svg")
