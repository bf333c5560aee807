"""Scores from the text alone: the authors' counts of curves and loops, the paper's score, and a weighted variant.

None of them looks at geometry: a program with the right number of lines in the wrong places scores 100. Report them
beside overlap and distance, never alone.
Source: paper section 6.1, table 4 and equation 1; the scoring script of the released evaluation examples.
Deviation: the paper does not say how loops are paired; the score pairs them so that most curve kinds agree (ties in
order), the variant greedily in order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from mm.cad.program import Arc, Circle, Curve, Line, Program

CALLS = ("add_line", "add_arc", "add_circle")
KINDS: dict[type, str] = {Line: "line", Arc: "arc", Circle: "circle"}
Kinds = tuple[str, ...]
DECIMALS = 4


def shortfall(counts: Sequence[int], reference: Sequence[int]) -> float:
    """1 - sum of min(|difference|, reference) over the sum of the reference, 0..1.

    Raises:
        ValueError: the reference counts nothing.
    """
    if sum(reference) == 0:
        raise ValueError("the reference has no curve or no loop; it is no program")
    lost = sum(min(abs(n - m), n) for m, n in zip(counts, reference, strict=True))
    return (sum(reference) - lost) / sum(reference)


def text_counts(predicted: str | None, reference: str) -> dict[str, float]:
    """`curve_accuracy` and `loop_accuracy` in percent, from how often the calls occur in the text.

    Blind on purpose, as the published script: a kind of curve that the reference lacks costs nothing.

    Args:
        predicted: Generated text; None (nothing was generated) scores 0.
        reference: True text.
    """
    text = predicted or ""
    curves = shortfall([text.count(call) for call in CALLS], [reference.count(call) for call in CALLS])
    loops = shortfall([text.count("add_loop")], [reference.count("add_loop")])
    return {"curve_accuracy": 100 * curves, "loop_accuracy": 100 * loops}


def kinds_of(program: Program) -> list[Kinds]:
    """The curve kinds of every loop, in the order of the text."""
    return [tuple(KINDS[type(curve)] for curve in loop.curves) for e in program.extrudes for loop in e.loops]


def kind_accuracy(predicted: Kinds, reference: Kinds) -> float:
    """Curve-kind accuracy within one loop, 0..1."""
    found, true = Counter(predicted), Counter(reference)
    kinds = list(KINDS.values())
    return shortfall([found[kind] for kind in kinds], [true[kind] for kind in kinds])


def paper_score(predicted: Program | None, reference: Program, *, executable: bool) -> float:
    """The paper's score, 0..100: 10 e + 45 curves + 5 loops + 40 mean over the reference's loops.

    A loop counts 1 if its curve kinds are right and in order, otherwise 0.9 of its curve-kind accuracy.

    Args:
        predicted: Generated program; None if the text is no program.
        reference: True program.
        executable: Whether a solid came out (e).
    """
    loops = kinds_of(predicted) if predicted else []
    true = kinds_of(reference)
    found_all, true_all = Counter(k for loop in loops for k in loop), Counter(k for loop in true for k in loop)
    kinds = list(KINDS.values())
    curves = shortfall([found_all[kind] for kind in kinds], [true_all[kind] for kind in kinds])
    total = 0.0
    if loops:
        gain = np.array([[kind_accuracy(loop, other) for loop in loops] for other in true])
        for row, column in zip(*linear_sum_assignment(-gain), strict=True):
            total += 1.0 if loops[column] == true[row] else 0.9 * gain[row, column]
    return 10 * executable + 45 * curves + 5 * shortfall([len(loops)], [len(true)]) + 40 * total / len(true)


def weighted_score(predicted: Program | None, reference: Program) -> tuple[float, float]:
    """A weighted variant that also reads the numbers: score 0..100 and the weight of this part in a mean.

    A loop whose statements equal the reference's up to rotation or reversal counts 100, any other 90 times its
    curve-kind accuracy; it weighs 1 + 0.05 (curves - 1). The part's score is 0.9 of the mean plus 0.1 of the loop
    accuracy, which is 0 if loops are missing; the part weighs 1 + 0.1 (loops - 1).
    Deviation: provenance of this variant is unconfirmed; it stands here because others report it.
    """
    true = _rows(reference)
    left = _rows(predicted) if predicted else []
    enough = len(left) >= len(true)
    loops = shortfall([len(left)], [len(true)])
    scores, weights = [], []
    for loop in true:
        kinds = tuple(row[0] for row in loop)
        found = [100.0 if _same(loop, o) else 90 * kind_accuracy(tuple(row[0] for row in o), kinds) for o in left]
        best = int(np.argmax(found)) if found else -1
        scores.append(found[best] if found else 0.0)
        weights.append(1 + 0.05 * (len(loop) - 1))
        left = [o for index, o in enumerate(left) if index != best]
    score = 0.9 * float(np.average(scores, weights=weights)) + 0.1 * (100 * loops if enough else 0.0)
    return score, 1 + 0.1 * (len(true) - 1)


def _rows(program: Program) -> list[list[tuple]]:
    """Every loop as rows (kind, numbers...)."""
    return [[_row(curve) for curve in loop.curves] for extrude in program.extrudes for loop in extrude.loops]


def _row(curve: Curve) -> tuple:
    if isinstance(curve, Circle):
        values = (*curve.center, abs(curve.radius))
    else:
        values = (*curve.start, *curve.end, *(curve.mid if isinstance(curve, Arc) else ()))
    return KINDS[type(curve)], *(round(value, DECIMALS) + 0.0 for value in values)


def _same(one: list[tuple], other: list[tuple]) -> bool:
    """Whether two lists agree up to rotation and reversal."""
    if len(one) != len(other):
        return False
    turns = [other[index:] + other[:index] for index in range(len(other))]
    return any(one in (turn, turn[::-1]) for turn in turns)
