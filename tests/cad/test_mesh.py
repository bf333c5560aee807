"""Measures of meshes against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from mm.cad.mesh import Mesh, join, weld

CUBE = Mesh(
    np.array([[x, y, z] for x in (0.0, 1.0) for y in (0.0, 1.0) for z in (0.0, 1.0)]),
    np.array(
        [
            *([0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1]),
            *([2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]),
        ]
    ),
)


def stretched(a, b, c, at=(0.0, 0.0, 0.0)) -> Mesh:
    return CUBE.moved(np.diag([a, b, c]), np.array(at, dtype=float))


def test_measures_of_a_box():
    box = stretched(2.0, 3.0, 5.0, at=(1e5, -2e5, 7.0))
    assert box.volume == pytest.approx(30)
    assert box.area == pytest.approx(62)
    np.testing.assert_allclose(box.centroid, [1e5 + 1, -2e5 + 1.5, 9.5], atol=1e-6)
    np.testing.assert_allclose(box.inertia, 30 / 12 * np.diag([9 + 25, 4 + 25, 4 + 9]), rtol=1e-6, atol=1e-4)


def test_a_mirror_keeps_the_outside_outside():
    assert CUBE.moved(np.diag([-1.0, 1, 1]), np.zeros(3)).volume == pytest.approx(1)


def test_edges_of_a_cube():
    pairs, sides = CUBE.edges
    assert len(pairs) == 18 and (sides >= 0).all()
    assert len(CUBE.feature_edges()) == 12, "diagonals of flat faces are no feature"
    assert CUBE.is_closed
    open_box = Mesh(CUBE.vertices, CUBE.triangles[:-2])
    assert not open_box.is_closed
    assert (open_box.edges[1][:, 1] == -1).sum() == 4


def test_points_are_spread_by_area():
    flat = stretched(10.0, 10.0, 0.1)
    points = flat.sample(20_000, seed=1)
    low, high = flat.bounds
    assert (points >= low - 1e-12).all() and (points <= high + 1e-12).all()
    on_top = np.isclose(points[:, 2], 0.1).mean()
    assert on_top == pytest.approx(100 / flat.area, abs=0.02)
    np.testing.assert_array_equal(points, flat.sample(20_000, seed=1))


def test_welding_joins_what_belongs_together():
    soup = Mesh(CUBE.corners.reshape(-1, 3) + 1e-9, np.arange(36).reshape(-1, 3))
    assert not soup.is_closed
    joined = weld(soup.vertices, soup.triangles, 1e-6)
    assert joined.is_closed and len(joined.vertices) == 8
    assert join([CUBE, stretched(1.0, 1, 1, at=(5.0, 0, 0))]).volume == pytest.approx(2)
