"""Scores: identity, known shifts, hand-counted cases, and the blind spots that the published ones have."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("manifold3d", reason="solids are compared by the mesh kernel: pip install 'mm[cad]'")

from mm.cad import emit
from mm.cad.kernel import build
from mm.cad.mesh import Mesh
from mm.cad.metrics import score
from mm.cad.metrics.counts import kind_accuracy, paper_score, text_counts, weighted_score
from mm.cad.metrics.generative import clouds, coverage_and_distance, divergence, signature, variety
from mm.cad.metrics.matching import f1_scores, match
from mm.cad.metrics.shapes import best_overlap, chamfer, overlap, scaled_chamfer, scaled_overlap
from mm.cad.metrics.vectors import vector_accuracy
from mm.cad.profiles import angle, circle, disc, rectangle, slot
from mm.cad.program import AbsolutePlane, Extrude, Program

TOP = AbsolutePlane((0, 0, 0), (0, 0, 1), (1, 0, 0))


def part(*loops, height=5.0) -> Program:
    return Program((Extrude(TOP, loops, 0, 0, height),))


PLATE = part(rectangle(24, 16), circle((6, 8), 2), circle((18, 8), 2))
MOVED = part(rectangle(24, 16), circle((12, 3), 1), circle((12, 13), 1), height=24.0)
"""The same commands, another part."""


def mesh(program: Program) -> Mesh:
    return build(program, kernel="mesh", limits=None).mesh


CUBE = mesh(part(rectangle(1, 1), height=1.0))


def shifted(one: Mesh, x=0.0, y=0.0, z=0.0, scale=1.0) -> Mesh:
    return one.moved(scale * np.eye(3), np.array([x, y, z]))


def test_identity_is_perfect():
    found = score(PLATE, PLATE)
    for name in ("curve_accuracy", "loop_accuracy", "paper_score", "weighted_score"):
        assert found[name] == pytest.approx(100)
    for name in ("iou", "scaled_iou", "best_iou", "acc_cmd", "acc_param", "f1_line", "f1_circle", "f1_extrude"):
        assert found[name] == pytest.approx(1)
    assert found["chamfer"] == found["scaled_chamfer_x1000"] == 0


def test_counts_do_not_see_geometry_and_overlap_does():
    found = score(MOVED, PLATE)
    assert found["curve_accuracy"] == 100 and found["paper_score"] == pytest.approx(100)
    assert found["scaled_iou"] < 0.6 and found["acc_param"] < 1 and found["weighted_score"] < 100


def test_overlap_of_known_shifts():
    assert overlap(CUBE, shifted(CUBE, x=0.5)) == pytest.approx(1 / 3)
    assert overlap(CUBE, shifted(CUBE, x=0.5, y=0.5)) == pytest.approx(0.25 / 1.75)
    assert overlap(CUBE, shifted(CUBE, x=2.0)) == 0
    assert scaled_overlap(CUBE, shifted(CUBE, x=9.0, scale=7.0)) == pytest.approx(1)


def test_best_overlap_ignores_pose_and_size_but_not_shape():
    ell = mesh(part(angle(24, 15), height=4.0))
    turn = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])
    assert best_overlap(ell.moved(3 * turn, np.array([5.0, 6, 7])), ell) == pytest.approx(1, abs=1e-6)
    assert scaled_overlap(ell.moved(turn, np.zeros(3)), ell) < 0.5
    assert best_overlap(mesh(part(rectangle(24, 15), height=4.0)), ell) < 0.8


def test_chamfer_is_symmetric_and_known():
    a, b = np.zeros((1, 3)), np.array([[3.0, 4.0, 0.0]])
    assert chamfer(a, b) == chamfer(b, a) == 50
    assert scaled_chamfer(CUBE, shifted(CUBE, x=3.0, scale=5.0)) == pytest.approx(0, abs=1e-9)
    long = mesh(part(rectangle(3, 1), height=1.0))
    assert scaled_chamfer(CUBE, long) > 10


def test_hand_counted_cases():
    """Two lines for four, a circle that the reference lacks, and one loop too many."""
    true = "add_line add_line add_line add_line add_loop"
    assert text_counts("add_line add_line add_loop", true) == {"curve_accuracy": 50, "loop_accuracy": 100}
    assert text_counts(true + " add_circle" * 9, true)["curve_accuracy"] == 100, "the published blind spot"
    assert text_counts(true + " add_loop", true)["loop_accuracy"] == 0
    assert text_counts("add_line " * 9 + "add_loop", true)["curve_accuracy"] == 0
    assert text_counts(None, true) == {"curve_accuracy": 0, "loop_accuracy": 0}
    with pytest.raises(ValueError, match="no program"):
        text_counts("", "nothing")


def test_paper_score_by_hand():
    """One of two loops right, the other a circle in the place of four lines."""
    true, found = part(slot(12, 6), rectangle(2, 2)), part(slot(12, 6), circle((1, 1), 1))
    curves = (8 - 4) / 8
    expected = 10 + 45 * curves + 5 + 40 * (1 + 0.9 * kind_accuracy(("circle",), ("line",) * 4)) / 2
    assert paper_score(found, true, executable=True) == pytest.approx(expected)
    assert paper_score(found, true, executable=False) == pytest.approx(expected - 10)
    assert paper_score(None, true, executable=False) == 0


def test_weighted_score_reads_numbers():
    """0.9 of the mean plus 0.1 of the loops; a loop may be rotated or reversed, not resized."""
    loop = rectangle(4, 4)
    turned = replace(loop, curves=(*loop.curves[1:], loop.curves[0]))
    assert weighted_score(part(turned), part(loop)) == (pytest.approx(100), 1.0)
    assert weighted_score(part(rectangle(4, 5)), part(loop))[0] == pytest.approx(0.9 * 90 + 10)
    two = part(loop, circle((2, 2), 1))
    score_of_one, weight = weighted_score(part(loop), two)
    assert score_of_one == pytest.approx(0.9 * 100 * 1.15 / 2.15) and weight == 1.1


def test_matching_leaves_the_hopeless_alone():
    assert match(np.array([[0.1, 0.9], [0.2, 0.1]])) == [(0, 0), (1, 1)]
    assert set(match(np.zeros((2, 1)) + 0.3)) == {(0, 0), (1, None)} or set(match(np.zeros((2, 1)) + 0.3)) == {
        (1, 0),
        (0, None),
    }


def test_f1_counts_what_is_missing_and_what_is_extra():
    without = part(rectangle(24, 16), circle((6, 8), 2))
    assert f1_scores(without, PLATE) == {"f1_line": 1, "f1_circle": pytest.approx(2 / 3), "f1_extrude": 1}
    assert f1_scores(None, PLATE)["f1_line"] == 0
    assert "f1_arc" not in f1_scores(PLATE, PLATE)
    assert f1_scores(part(disc(24, 24)), part(rectangle(24, 24))) == {"f1_line": 0, "f1_circle": 0, "f1_extrude": 1}


def test_vector_accuracy_by_hand():
    """Parameters may be off by two levels, choices by none, and count only where the command is right."""
    row = [-1] * 17
    line, arc, end = row.copy(), row.copy(), row.copy()
    line[:3] = 0, 100, 50
    arc[:5] = 1, 10, 20, 64, 1
    end[0] = 3
    near = [[*line[:1], 102, 53, *line[3:]], [*arc[:4], 0, *arc[5:]], end]
    found = vector_accuracy(np.array(near), np.array([line, arc, end]))
    assert found == {"acc_cmd": 1.0, "acc_param": pytest.approx((1 + 0 + 3) / 6)}
    other = vector_accuracy(np.array([arc, arc, end]), np.array([line, arc, end]))
    assert other == {"acc_cmd": pytest.approx(59 / 60), "acc_param": 1.0}
    with pytest.raises(ValueError, match="61 rows"):
        vector_accuracy(np.array([line] * 61), np.array([line]))


def test_lists_count_failures():
    texts = [emit(PLATE), emit(MOVED), emit(part(disc(24, 24)))]
    found = score([texts[0], None, "no program"], texts)
    assert found["parts"] == 3 and found["valid_program"] == pytest.approx(1 / 3)
    assert found["invalid_ratio"] == pytest.approx(2 / 3)
    assert found["scaled_iou"] == pytest.approx(1) and found["scaled_iou_all"] == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="one for each"):
        score([None], texts)
    with pytest.raises(ValueError, match="builds no solid"):
        score(texts[0], emit(part(rectangle(4, 4), height=0.0)))


def test_sets_of_parts():
    meshes = [mesh(part(rectangle(24, 4 * n), height=3.0)) for n in (1, 3, 5)]
    points = clouds(meshes, points=300)
    same = coverage_and_distance(points, points)
    assert same["cov"] == 1 and same["mmd"] == 0 and divergence(points, points) == pytest.approx(0)
    collapsed = coverage_and_distance([points[0]] * 3, points)
    assert collapsed["cov"] == pytest.approx(1 / 3) and collapsed["mmd"] > 0
    assert divergence(points[:1], points[2:]) > 0.5


def test_signatures_know_a_part_again():
    one, other = mesh(PLATE), mesh(part(rectangle(24, 16), circle((18, 8), 2), circle((6, 8), 2)))
    assert signature(one) == signature(shifted(other, x=5.0, scale=2.0)) != signature(mesh(MOVED))
    found = variety([one, other, None, mesh(MOVED)], training=[mesh(MOVED)])
    assert found == {"valid": 0.75, "unique": pytest.approx(2 / 3), "novel": pytest.approx(2 / 3)}
