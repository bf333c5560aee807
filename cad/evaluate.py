"""What the tiny model is worth on held-out parts, with the controls that tell looking from guessing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mm.cad.data import draw_part
from mm.cad.emitter import emit
from mm.cad.errors import ProgramError
from mm.cad.kernel import Limits, Solid, build
from mm.cad.metrics.counts import kinds_of, text_counts
from mm.cad.metrics.shapes import scaled_overlap
from mm.cad.model import Candidate, OpenECAD
from mm.cad.parser import parse
from mm.cad.procedural import TINY, sample_part
from mm.cad.program import Program
from mm.cad.rerank import Checked, best, check
from mm.data.split import Split

PARTS = 128
"""Held-out parts."""
SAMPLES = 4
"""Further candidates per picture for re-ranking (k)."""
CONSTANTS = 24
"""Training programs among which the best constant answer is sought."""
CONSTANT_PARTS = 48
CONSTRAINED_PARTS = 64
LIMITS = Limits(seconds=10.0, cpu_seconds=10.0)


def evaluate(model: OpenECAD, *, seed: int = 0, parts: int = PARTS, samples: int = SAMPLES) -> dict[str, float]:
    """Scores of the greedy answer, of re-ranking, of shuffled pictures and of the best constant program.

    Args:
        model: Reads 64-pixel pictures.
        seed: Chooses the held-out parts.
        parts: How many.
        samples: Further candidates per picture for re-ranking.

    Returns:
        `valid_program`, `valid_solid`: shares, decoded freely; `valid_constrained`: the first under the grammar;
        `curve_kinds`: share of parts in which every loop has the right kinds of curves in the right order;
        `curve_accuracy`: the published count, 0..1; `scaled_iou`: mean overlap in the unit box, 0 where there is no
        solid; `reranked_iou`: the same for the best of 1 + `samples` candidates by likeness to the picture;
        `shuffled_*`: with another part's picture; `constant_iou`: the one program that does best.
    """
    seeds = Split("test").seeds[seed * parts : (seed + 1) * parts]
    programs = [sample_part(number, TINY).program for number in seeds]
    pictures = [draw_part(number, TINY) for number in seeds]
    solids = [build(program, kernel="mesh", limits=LIMITS) for program in programs]
    candidates = propose(model, pictures, samples=samples)
    greedy = [check(found[0], picture) for found, picture in zip(candidates, pictures, strict=True)]
    ranked = [best(found, picture) for found, picture in zip(candidates, pictures, strict=True)]
    scores = answer_scores(greedy, programs, solids)
    turned = [programs[-1], *programs[:-1]]  # every program meets the answer to another part's picture
    shuffled = answer_scores(greedy, turned, [solids[-1], *solids[:-1]])
    scores |= {f"shuffled_{name}": shuffled[name] for name in ("curve_kinds", "scaled_iou")}
    held = propose(model, pictures[:CONSTRAINED_PARTS], samples=0, constrained=True)
    scores["valid_constrained"] = float(np.mean([_parses(found[0].text) for found in held]))
    scores["reranked_iou"] = float(np.mean(overlaps(ranked, solids)))
    scores["constant_iou"] = constant_overlap(solids[:CONSTANT_PARTS])
    return scores


def _parses(text: str) -> bool:
    try:
        parse(text)
    except ProgramError:
        return False
    return True


def propose(
    model: OpenECAD, pictures: Sequence[Any], *, samples: int, constrained: bool = False, group: int = 32
) -> list[list[Candidate]]:
    """Candidates for many grey pictures, some at a time."""
    found: list[list[Candidate]] = []
    for start in range(0, len(pictures), group):
        colour = [picture[..., None].repeat(3, axis=-1) for picture in pictures[start : start + group]]
        found += model.propose(colour, samples=samples, constrained=constrained)
    return found


def answer_scores(found: Sequence[Checked], programs: Sequence[Program], solids: Sequence[Solid]) -> dict[str, float]:
    """Means over answers and their true programs."""
    pairs = list(zip(found, programs, strict=True))
    counts = [text_counts(one.candidate.text, emit(true))["curve_accuracy"] / 100 for one, true in pairs]
    return {
        "valid_program": float(np.mean([_parses(one.candidate.text) for one in found])),
        "valid_solid": float(np.mean([one.solid is not None for one in found])),
        "curve_kinds": float(np.mean([_same_kinds(one.program, true) for one, true in pairs])),
        "curve_accuracy": float(np.mean(counts)),
        "scaled_iou": float(np.mean(overlaps(found, solids))),
    }


def _same_kinds(found: Program | None, true: Program) -> bool:
    return found is not None and kinds_of(found) == kinds_of(true)


def overlaps(found: Sequence[Checked], solids: Sequence[Solid]) -> list[float]:
    """Overlap in the unit box of every answer with its part, 0 where there is no solid."""
    return [
        0.0 if one.solid is None else scaled_overlap(one.solid.mesh, true.mesh)
        for one, true in zip(found, solids, strict=True)
    ]


def constant_overlap(solids: Sequence[Solid], constants: int = CONSTANTS) -> float:
    """Mean overlap of the training program that does best when it answers every picture."""
    means = []
    for number in Split("train").seeds[:constants]:
        fixed = build(parse(emit(sample_part(number).program)), kernel="mesh", limits=LIMITS)
        means.append(np.mean([scaled_overlap(fixed.mesh, true.mesh) for true in solids]))
    return float(max(means))
