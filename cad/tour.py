"""OpenECAD's page of the tour: pictures to programs to solids, scores with controls, one edit, a turntable."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mm.cad.data import draw_part
from mm.cad.drawing import render
from mm.cad.editing import edit
from mm.cad.evaluate import evaluate, overlaps, propose
from mm.cad.examples import BRACKET
from mm.cad.kernel import Solid, build
from mm.cad.model import OpenECAD
from mm.cad.parser import parse
from mm.cad.procedural import TINY, sample_part
from mm.cad.rerank import Checked, best
from mm.checkpoint import load
from mm.data.split import Split

if TYPE_CHECKING:
    from mm.app.report import Page

MODEL = "openecad_tiny"
SHOWN = 4
"""Parts whose pictures and programs are shown."""
PARTS, SAMPLES = 32, 4
"""Held-out parts of the score table, and further candidates per picture; `mm zoo verify` takes more."""
FRAMES = 24
"""Views of the turntable."""
SIDE = 240
"""Side of drawings, pixels."""


def page(page: Page) -> None:
    """Fill the page."""
    model = load(MODEL)
    if not isinstance(model, OpenECAD):
        raise TypeError(f"{MODEL} must be an OpenECAD model")
    page.text(
        "A small vision-language model reads one picture of a part and writes the program that builds it: named "
        "sketches and extrusions in millimetres, which a person can edit and a CAD kernel turns into STEP. The text is "
        "read as data and never executed. The model knows procedural parts in this one view and nothing else; the "
        "parts below are held out, no training part has the same program."
    )
    solid = _pictures(page, model)
    _scores(page, model)
    _turntable(page, solid)
    _edited(page)


def _pictures(page: Page, model: OpenECAD) -> Solid:
    """Picture, program and drawing side by side; returns a solid to look at from all sides."""
    import matplotlib.pyplot as plt

    page.heading("From a picture to a program to a solid")
    seeds = _varied(page.seed)
    pictures = [draw_part(seed, TINY) for seed in seeds]
    candidates = propose(model, pictures, samples=SAMPLES, constrained=True)
    found = [best(texts, picture) for texts, picture in zip(candidates, pictures, strict=True)]
    true = [build(sample_part(seed, TINY).program, kernel="mesh") for seed in seeds]
    figure, axes = plt.subplots(len(seeds), 3, figsize=(11, 3.1 * len(seeds)), width_ratios=(1, 2.1, 1))
    for row, (picture, one) in enumerate(zip(pictures, found, strict=True)):
        _row(axes[row], picture, one)
    page.figure(
        figure,
        "Left: all that the model sees, 64 pixels. Middle: its program, the best of "
        f"{1 + SAMPLES} candidates by likeness of the drawing. Right: that program built and drawn again.",
    )
    rows: list[dict[str, Any]] = [
        {
            "part": sample_part(seed, TINY).family,
            "agreement with the picture": one.agreement,
            "confidence of the model": one.candidate.confidence,
            "volume, mm3": None if one.solid is None else one.solid.volume,
            "true volume, mm3": solid.volume,
            "overlap with the true part": overlap,
        }
        for seed, one, solid, overlap in zip(seeds, found, true, overlaps(found, true), strict=True)
    ]
    page.table(rows, "The same parts in numbers; agreement needs no true part, overlap is in the unit box", key="parts")
    return next((one.solid for one in reversed(found) if one.solid is not None), true[-1])


def _varied(seed: int) -> list[int]:
    """Held-out parts of different families, those with two extrudes first."""
    held_out = Split("test").seeds[seed * 64 : seed * 64 + 64]
    seeds = sorted(held_out, key=lambda number: -len(sample_part(number, TINY).program.extrudes))
    chosen = {sample_part(number, TINY).family: number for number in reversed(seeds)}
    return sorted(chosen.values(), key=seeds.index)[:SHOWN]


def _row(axes: Any, picture: np.ndarray, one: Checked) -> None:
    left, middle, right = axes
    left.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    middle.text(0, 1, one.candidate.text, va="top", family="monospace", fontsize=5.2, transform=middle.transAxes)
    right.imshow(np.full((8, 8, 3), 255, dtype=np.uint8) if one.solid is None else render(one.solid, size=SIDE))
    right.set_title(f"agreement {one.agreement:.2f}" + (", uncertain" if one.uncertain else ""), fontsize=9)
    for axis in axes:
        axis.set_axis_off()


def _scores(page: Page, model: OpenECAD) -> None:
    page.heading("Does it look?")
    found = evaluate(model, seed=page.seed, parts=PARTS, samples=SAMPLES)
    page.record("scores", found)
    answers = [
        ("decoded freely", "valid_program", "curve_kinds", "scaled_iou"),
        ("under the grammar", "valid_constrained", None, None),
        (f"best of {1 + SAMPLES} by its drawing", None, None, "reranked_iou"),
        ("control: another part's picture", None, "shuffled_curve_kinds", "shuffled_scaled_iou"),
        ("control: the best constant program", None, None, "constant_iou"),
    ]
    rows = []
    for name, valid, kinds, overlap in answers:
        row: dict[str, Any] = {"answer": name, "valid programs": None if valid is None else found[valid]}
        row |= {"right kinds of curves": None if kinds is None else found[kinds]}
        rows.append(row | {"overlap in the unit box": None if overlap is None else found[overlap]})
    page.table(rows, f"{PARTS} held-out parts", key="controls")


def _turntable(page: Page, solid: Solid) -> None:
    page.heading("From all sides")
    angles = [2 * math.pi * k / FRAMES for k in range(FRAMES)]
    frames = [render(solid, view=(math.cos(angle), math.sin(angle), 0.7), size=SIDE) for angle in angles]
    page.animation(frames, "The last solid above, built from the generated program, on a turntable.")


def _edited(page: Page) -> None:
    """One number is changed; what stands on the changed feature moves with it."""
    page.heading("Change one number")
    editor = edit(BRACKET)
    before = build(parse(editor.text), kernel="mesh")
    change = editor.set("Extrude0", extent_one=16)
    after = build(parse(editor.text), kernel="mesh")
    strip = np.hstack([render(solid, style=style, size=SIDE) for solid in (before, after) for style in _STYLES])
    page.picture(strip, "A plate of 6 mm and of 16 mm: the tube is sketched on its upper face and goes up with it.")
    page.table(
        [
            {"plate, mm": height, "volume, mm3": solid.volume, "height, mm": float(np.ptp(solid.bounds, axis=0)[2])}
            for height, solid in ((6, before), (16, after))
        ],
        f"One line of the program changed; moved or reshaped: {', '.join(one.extrude for one in change.moved)}",
        key="edit",
    )


_STYLES: tuple[Any, ...] = ("shaded", "transparent")
