"""Frames: the published golden values, and an independent check that knows nothing of our formulas."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from mm.cad import emit, parse, resolve_planes
from mm.cad.planes import PlaneError
from mm.cad.polar import frame_angles, frame_from_angles
from mm.cad.program import AbsolutePlane, Circle, Extrude, Line, Loop, Program, RelativePlane

CORNERS = ((0.0, 0.0), (40.0, 0.0), (40.0, 20.0), (0.0, 20.0))
RECTANGLE = Loop(tuple(Line(CORNERS[k], CORNERS[(k + 1) % 4]) for k in range(4)))
BASE = Extrude(AbsolutePlane((10.0, 20.0, 30.0), (0.0, -1.0, 0.0), (1.0, 0.0, 0.0)), (RECTANGLE,), 0, 2, 5.0, 3.0)
GOLDEN = [
    (RelativePlane(0, (1, 2), "sameplane"), (11, 20, 32), (0, -1, 0), (1, 0, 0), (0, 0, 1)),
    (RelativePlane(0, (1, 2), "extent_one"), (11, 15, 32), (0, -1, 0), (1, 0, 0), (0, 0, 1)),
    (RelativePlane(0, (1, 2), "extent_two"), (11, 23, 32), (0, -1, 0), (1, 0, 0), (0, 0, 1)),
    (
        RelativePlane(0, (1, 2), "sameplane", None, True, math.pi / 2),
        (11, 20, 32),
        (0, 1, 0),
        (0, 0, 1),
        (1, 0, 0),
    ),
    (RelativePlane(0, (4, 2), "line", (0, 1)), (50, 18, 34), (1, 0, 0), (0, 0, 1), (0, -1, 0)),
    (
        RelativePlane(0, (4, 2), "line", (0, 1), False, math.pi / 2),
        (50, 18, 34),
        (1, 0, 0),
        (0, -1, 0),
        (0, 0, -1),
    ),
    (RelativePlane(0, (4, 2), "line", (0, 1), True), (50, 18, 34), (-1, 0, 0), (0, 0, 1), (0, 1, 0)),
]


def on(plane):
    return Extrude(plane, (RECTANGLE,), 0, 0, 1.0)


@pytest.mark.parametrize("row", GOLDEN)
def test_golden_values(row):
    frame = resolve_planes(Program((BASE, on(row[0]))))[1]
    for found, expected in zip((frame.origin, frame.normal, frame.x_axis, frame.y_axis), row[1:], strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_legacy_reverses_wrongly_where_the_published_code_does():
    frame = resolve_planes(Program((BASE, on(GOLDEN[-1][0]))), "legacy")[1]
    np.testing.assert_allclose(frame.normal, (1, 0, 0), atol=1e-12)


def printed_and_read(normals, x_axes):
    """Frames as text with 4 decimals, read and resolved."""
    planes = [AbsolutePlane((1.0, 2.0, 3.0), tuple(n), tuple(x)) for n, x in zip(normals, x_axes, strict=True)]
    dots = (Loop((Circle((0.0, 0.0), 1.0),)),)
    frames = []
    for start in range(0, len(planes), 60):
        frames += resolve_planes(
            parse(emit(Program(tuple(Extrude(p, dots, 0, 0, 1.0) for p in planes[start : start + 60]))))
        )
    return frames


def assert_right_handed_near(frames, normals, x_axes):
    found = np.array([[f.normal, f.x_axis, f.y_axis] for f in frames])
    expected = np.stack([normals, x_axes, np.cross(normals, x_axes)], 1)
    assert np.abs(found - expected).max() < 2e-4
    np.testing.assert_allclose(np.linalg.det(found[:, [1, 2, 0]]), 1.0, atol=1e-9)
    np.testing.assert_allclose(found @ found.transpose(0, 2, 1), np.broadcast_to(np.eye(3), found.shape), atol=1e-9)


def test_all_axis_aligned_frames():
    axes = [np.eye(3)[i] * s for i, s in itertools.product(range(3), (1, -1))]
    pairs = [(n, x) for n, x in itertools.product(axes, axes) if abs(n @ x) < 0.5]
    assert len(pairs) == 24
    normals, x_axes = (np.array([pair[i] for pair in pairs]) for i in (0, 1))
    assert_right_handed_near(printed_and_read(normals, x_axes), normals, x_axes)


def test_random_frames():
    generator = np.random.default_rng(0)
    basis = np.linalg.qr(generator.normal(size=(10_000, 3, 3)))[0]
    normals, x_axes = basis[:, :, 0], basis[:, :, 1]
    assert_right_handed_near(printed_and_read(normals, x_axes), normals, x_axes)


def test_sweep_about_z():
    angles = np.radians(np.arange(0, 360, 2))
    x_axes = np.stack([np.cos(angles), np.sin(angles), 0 * angles], 1)
    normals = np.broadcast_to([0.0, 0.0, 1.0], x_axes.shape)
    assert_right_handed_near(printed_and_read(normals, x_axes), normals, x_axes)


def test_polar_angles_return_every_frame():
    generator = np.random.default_rng(1)
    basis = [*np.linalg.qr(generator.normal(size=(500, 3, 3)))[0]]
    basis += [np.array(p) * s for p in itertools.permutations(np.eye(3)) for s in itertools.product((1, -1), repeat=3)]
    for n, x, _ in (np.moveaxis(b, -1, 0) if i < 500 else b for i, b in enumerate(basis)):
        normal, x_axis = frame_from_angles(*frame_angles(tuple(map(float, n)), tuple(map(float, x))))
        np.testing.assert_allclose((normal, x_axis), (n, x), atol=1e-12)


def test_features_on_the_upper_face_follow_the_extent():
    """Dependency: an extent moves what refers to its face by the difference, absolute planes stay."""
    third = Extrude(AbsolutePlane((0.0, 0.0, 9.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)), (RECTANGLE,), 0, 0, 1.0)
    program = Program((BASE, on(GOLDEN[1][0]), third))
    taller = Program((Extrude(BASE.plane, BASE.loops, 0, 2, 8.5, 3.0), *program.extrudes[1:]))
    before, after = resolve_planes(program), resolve_planes(taller)
    np.testing.assert_allclose(np.subtract(after[1].origin, before[1].origin), (0.0, -3.5, 0.0), atol=1e-12)
    assert after[0] == before[0] and after[2] == before[2]


@pytest.mark.parametrize(
    ("normal", "x_axis"),
    [((0, 0, 0), (1, 0, 0)), ((0, 0, 1), (0, 0, 0)), ((0, 0, 1), (0, 0, 2)), ((1, 1, 0), (-2, -2, 0))],
)
def test_planes_without_direction(normal, x_axis):
    with pytest.raises(PlaneError, match=r"parallel|zero"):
        resolve_planes(Program((on(AbsolutePlane((0, 0, 0), normal, x_axis)),)))


@pytest.mark.parametrize(
    ("plane", "message"),
    [
        (RelativePlane(1, (0, 0), "sameplane"), "earlier"),
        (RelativePlane(-1, (0, 0), "sameplane"), "earlier"),
        (RelativePlane(0, (0, 0), "line", (0, 4)), "no curve 4"),
        (RelativePlane(0, (0, 0), "line"), "needs a line"),
    ],
)
def test_references_that_lead_nowhere(plane, message):
    with pytest.raises(ValueError, match=message):
        resolve_planes(Program((BASE, on(plane))))
