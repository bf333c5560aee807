"""Text2CAD's F1 scores: loops and curves of a sketch are matched before their kinds are compared.

Sketches are paired by index; in each, loops are matched one to one by the places of their boxes, then curves in matched
loops by their points. What has no partner costs 1.
Source: Text2CAD (Khan et al. 2024, arXiv:2409.17106), section 5.
Dims: n predicted and m true loops or curves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from mm.cad.mesh import Floats
from mm.cad.metrics.counts import KINDS
from mm.cad.program import Arc, Circle, Curve, Extrude, Loop, Program

UNMATCHED = 1.0


def match(cost: Floats) -> list[tuple[int | None, int | None]]:
    """The cheapest pairing of rows and columns (n, m) in which staying alone costs 1."""
    n, m = cost.shape
    square = np.full((n + m, n + m), UNMATCHED)
    square[:n, :m] = cost
    square[n:, m:] = 0
    pairs = zip(*linear_sum_assignment(square), strict=True)
    found = [(int(i) if i < n else None, int(j) if j < m else None) for i, j in pairs]
    return [pair for pair in found if pair != (None, None)]


def curve_points(curve: Curve) -> Floats:
    """First, middle and last point of a curve; of a circle three points around it, (3, 2)."""
    if isinstance(curve, Circle):
        r = abs(curve.radius)
        return np.array(curve.center) + r * np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    start, end = np.array(curve.start), np.array(curve.end)
    return np.stack([start, np.array(curve.mid) if isinstance(curve, Arc) else (start + end) / 2, end])


def _box(loop: Loop) -> Floats:
    points = np.concatenate([curve_points(curve) for curve in loop.curves])
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def _size(extrude: Extrude) -> float:
    boxes = np.array([_box(loop) for loop in extrude.loops])
    return max(float((boxes[:, 2:].max(axis=0) - boxes[:, :2].min(axis=0)).max()), 1e-12)


def matched_kinds(predicted: Program | None, reference: Program) -> Counter[tuple[str | None, str | None]]:
    """How often a curve of one kind was matched with one of another; None = no partner."""
    pairs: Counter[tuple[str | None, str | None]] = Counter()
    found = predicted.extrudes if predicted else ()
    for index in range(max(len(found), len(reference.extrudes))):
        if index >= len(reference.extrudes) or index >= len(found):
            alone = found[index] if index < len(found) else reference.extrudes[index]
            for loop in alone.loops:
                _count_alone(pairs, loop.curves, predicted=index < len(found))
            continue
        _count_sketch(pairs, found[index], reference.extrudes[index])
    return pairs


def _count_alone(pairs: Counter, curves: Sequence[Curve], *, predicted: bool) -> None:
    for curve in curves:
        kind = KINDS[type(curve)]
        pairs[(kind, None) if predicted else (None, kind)] += 1


def _count_sketch(pairs: Counter, found: Extrude, true: Extrude) -> None:
    size = _size(true)
    boxes = [np.array([_box(loop) for loop in extrude.loops]) for extrude in (found, true)]
    cost = np.abs(boxes[0][:, None] - boxes[1][None]).mean(axis=-1) / size
    for i, j in match(np.minimum(cost, UNMATCHED)):
        if i is None or j is None:
            alone = true.loops[j] if j is not None else found.loops[i]  # type: ignore[index]
            _count_alone(pairs, alone.curves, predicted=i is not None)
            continue
        one, other = found.loops[i].curves, true.loops[j].curves
        for a, b in match(_curve_costs(one, other, size)):
            kinds = (None if a is None else KINDS[type(one[a])], None if b is None else KINDS[type(other[b])])
            pairs[kinds] += 1


def _curve_costs(one: Sequence[Curve], other: Sequence[Curve], size: float) -> Floats:
    """Mean distance of the three points, whichever way round the curve was drawn, in sketch sizes, (n, m)."""
    a, b = (np.array([curve_points(curve) for curve in curves]) for curves in (one, other))
    ways = [np.linalg.norm(a[:, None, order] - b[None], axis=-1).mean(axis=-1) for order in ([0, 1, 2], [2, 1, 0])]
    return np.minimum(np.minimum(*ways) / size, UNMATCHED)


def f1_scores(predicted: Program | None, reference: Program) -> dict[str, float]:
    """F1 per curve kind that either program has (`f1_line`, `f1_arc`, `f1_circle`) and of the extrudes, 0..1."""
    pairs = matched_kinds(predicted, reference)
    scores = {}
    for kind in KINDS.values():
        right = pairs[kind, kind]
        found = sum(count for (a, _), count in pairs.items() if a == kind)
        true = sum(count for (_, b), count in pairs.items() if b == kind)
        if found or true:
            scores[f"f1_{kind}"] = 2 * right / (found + true)
    n, m = len(predicted.extrudes) if predicted else 0, len(reference.extrudes)
    return {**scores, "f1_extrude": 2 * min(n, m) / (n + m)}
