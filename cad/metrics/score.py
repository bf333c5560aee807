"""One call for all scores: a predicted program against the true one, or a list of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mm.cad.deepcad import to_deepcad
from mm.cad.emitter import emit
from mm.cad.errors import ProgramError
from mm.cad.kernel import BuildError, Limits, Solid, build
from mm.cad.kernel.solid import Kernel
from mm.cad.metrics import shapes
from mm.cad.metrics.counts import paper_score, text_counts, weighted_score
from mm.cad.metrics.matching import f1_scores
from mm.cad.metrics.vectors import vector_accuracy
from mm.cad.parser import parse
from mm.cad.program import Program

LIMITS = Limits(seconds=3.0, cpu_seconds=3.0)
"""Time per program, as the related works allow."""
SHAPE_SCORES: dict[str, Callable[..., float]] = {
    "iou": shapes.overlap,
    "scaled_iou": shapes.scaled_overlap,
    "best_iou": shapes.best_overlap,
    "chamfer": shapes.deepcad_chamfer,
    "scaled_chamfer_x1000": shapes.scaled_chamfer,
}
"""Only for parts that became solids; means leave the others out and `valid_solid` says how many there are."""
ZERO_IF_INVALID = ("iou", "scaled_iou", "best_iou")
"""Also averaged over everything as `..._all`, with 0 where there is no solid."""
TRIM = 0.1
"""Share of best and of worst parts that the trimmed mean leaves out."""


@dataclass(frozen=True)
class Answer:
    """A text or program with what became of it."""

    text: str
    program: Program | None
    solid: Solid | None
    problem: str = ""
    """Why there is no program or no solid: code of the error."""


def evaluate(source: Program | Solid | str | None, kernel: Kernel = "mesh", limits: Limits = LIMITS) -> Answer:
    """Parse and build; whatever goes wrong becomes `problem`."""
    if isinstance(source, Solid):
        return Answer("", None, source)
    if source is None:
        return Answer("", None, None, "missing")
    text = source if isinstance(source, str) else emit(source)
    try:
        program = parse(source) if isinstance(source, str) else source
    except ProgramError as error:
        return Answer(text, None, None, error.code)
    try:
        return Answer(text, program, build(program, kernel=kernel, limits=limits))
    except (BuildError, ProgramError) as error:
        code = error.status if isinstance(error, BuildError) else error.code
        return Answer(text, program, None, code)


def score(predicted: Any, reference: Any, *, kernel: Kernel = "mesh", limits: Limits = LIMITS) -> dict[str, float]:
    """Every score of a prediction, or the means over a list of predictions.

    Args:
        predicted: Program, its text, a solid, or None where nothing was generated; or a list of these.
        reference: Likewise; every reference must build.
        kernel: Builds the solids.
        limits: Per program.

    Returns:
        For one pair: `valid_program`, `valid_solid` (0 or 1); if both are programs `curve_accuracy`, `loop_accuracy`,
        `paper_score`, `weighted_score` (0..100), `acc_cmd`, `acc_param`, `f1_*` (0..1); if both have solids `iou`,
        `scaled_iou`, `best_iou` (0..1), `chamfer`, `scaled_chamfer_x1000`. For lists: the means, and of the distances
        also `_median` and `_trimmed`; `invalid_ratio`; `parts`.

    Raises:
        ValueError: a reference that is no program or builds no solid, or lists of different lengths.
    """
    if not isinstance(reference, list | tuple):
        return pair_scores(evaluate(predicted, kernel, limits), evaluate(reference, kernel, limits))
    if len(predicted) != len(reference) or not reference:
        raise ValueError(f"{len(predicted)} predictions for {len(reference)} references; give one for each")
    rows = [score(one, other, kernel=kernel, limits=limits) for one, other in zip(predicted, reference, strict=True)]
    weights = [weighted_score(None, program)[1] for program in map(_program, reference) if program is not None]
    return summary(rows, weights if len(weights) == len(rows) else None)


def _program(source: Any) -> Program | None:
    if isinstance(source, Solid):
        return None
    return parse(source) if isinstance(source, str) else source


def pair_scores(predicted: Answer, reference: Answer) -> dict[str, float]:
    """The scores of one prediction; see `score`."""
    if reference.solid is None:
        raise ValueError(f"the reference builds no solid ({reference.problem}); mend it first")
    found = {"valid_program": float(predicted.program is not None), "valid_solid": float(predicted.solid is not None)}
    if reference.program is not None and (predicted.text or predicted.solid is None):
        found |= program_scores(predicted, reference)
    if predicted.solid is not None:
        found |= {name: measure(predicted.solid.mesh, reference.solid.mesh) for name, measure in SHAPE_SCORES.items()}
    return found


def program_scores(predicted: Answer, reference: Answer) -> dict[str, float]:
    """What compares programs and not shapes."""
    assert reference.program is not None
    executable = predicted.solid is not None
    found = {
        **text_counts(predicted.text, reference.text),
        "paper_score": paper_score(predicted.program, reference.program, executable=executable),
        "weighted_score": weighted_score(predicted.program, reference.program)[0],
        **f1_scores(predicted.program, reference.program),
    }
    vectors = [_vector(answer.program) for answer in (predicted, reference)]
    if vectors[1] is not None:  # a reference that does not fit the format says nothing about the prediction
        nothing = {"acc_cmd": 0.0, "acc_param": 0.0}
        found |= nothing if vectors[0] is None else vector_accuracy(vectors[0], vectors[1])
    return found


def _vector(program: Program | None) -> Any:
    """DeepCAD's vector, None if the program has none."""
    if program is None:
        return None
    try:
        return to_deepcad(program, "vector")
    except ValueError:
        return None


def summary(rows: Sequence[dict[str, float]], weights: Sequence[float] | None = None) -> dict[str, float]:
    """Means of the scores of many parts; each over the parts that have it.

    Args:
        rows: What `pair_scores` gave.
        weights: Of the parts in the weighted score.
    """
    found: dict[str, float] = {"parts": float(len(rows))}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = np.sort([row[name] for row in rows if name in row])
        found[name] = float(values.mean())
        if "chamfer" in name:
            cut = int(TRIM * len(values))
            found[f"{name}_median"] = float(np.median(values))
            found[f"{name}_trimmed"] = float(values[cut : len(values) - cut].mean())
        if name in ZERO_IF_INVALID:
            found[f"{name}_all"] = float(values.sum() / len(rows))
    if weights is not None and "weighted_score" in found:
        found["weighted_score"] = float(np.average([row["weighted_score"] for row in rows], weights=weights))
    found["invalid_ratio"] = 1 - found["valid_solid"]
    return found
