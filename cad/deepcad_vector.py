"""DeepCAD vectors: a part as rows of 17 integers on 256 levels.

    command x y alpha f r theta phi gamma px py pz s e1 e2 b u        (-1 = not used by the command)
    Line 0 (x y)   Arc 1 (x y alpha f)   Circle 2 (x y r)   EOS 3   SOL 4   Ext 5 (theta ... u)

Sketch points lie on the grid with the profile's first point at (128, 128) and its farthest side 95 steps away; `s` is
that size, (px, py, pz) the first point in space, both in a unit cube. At most 10 extrudes, 6 loops per profile, 15 rows
per loop with its SOL row, 60 rows.

Source: DeepCAD (Wu et al. 2021), section 3.1 and appendix.
Deviation: the angle pi is written as -pi (level 0), which is exact; the published code clips it to level 255, which is
1.4 degrees off. A normal with negative x keeps its sign (there it is lost).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from mm.cad.curves import ArcCircle, arc_circle, loop_box, start_of
from mm.cad.deepcad_json import DeepCadError, Feature
from mm.cad.part_box import part_box
from mm.cad.planes import Frame, resolve_planes
from mm.cad.polar import frame_angles, frame_from_angles
from mm.cad.program import Arc, Circle, Curve, Extrude, Line, Loop, Program, Vec2
from mm.cad.vectors import cross
from mm.cad.version1 import GRID_CENTER, GRID_REACH

LINE, ARC, CIRCLE, END, START_OF_LOOP, EXTRUDE = range(6)
LEVELS = 256
COLUMNS = 17
MAX_ROWS, MAX_EXTRUDES, MAX_LOOPS, MAX_CURVES = 60, 10, 6, 14
_UNIT_CUBE = 0.75
"""Largest coordinate of a normalised part."""
_ON_GRID = 1e-3
"""A coordinate this close to a level (in levels) lies on it."""


def read_vector(data: Any) -> list[Feature]:
    """The extrudes of a vector, in its unit-cube scale.

    Args:
        data: Integers (n, 17); rows after EOS are ignored.

    Raises:
        DeepCadError: wrong shape, an unknown command, a curve outside a loop, an extrude without a loop.
    """
    rows = np.asarray(data)
    if rows.ndim != 2 or rows.shape[1] != COLUMNS or rows.dtype.kind not in "iuf":
        raise DeepCadError(f"a vector has {COLUMNS} integer columns, found shape {rows.shape} of {rows.dtype}")
    features: list[Feature] = []
    loops: list[list[list[int]]] = []
    for number, row in enumerate(rows.astype(np.int64).tolist()):
        command = row[0]
        if command == END:
            break
        if command == START_OF_LOOP:
            loops.append([])
        elif command in (LINE, ARC, CIRCLE) and loops:
            loops[-1].append(row)
        elif command == EXTRUDE and loops and all(loops):
            features.append(_feature(loops, row))
            loops = []
        else:
            raise DeepCadError(f"row {number}: command {command} cannot stand here")
    if not features or loops:
        raise DeepCadError("the vector ends before its last loop is extruded" if loops else "the vector is empty")
    return features


def _feature(loops: list[list[list[int]]], row: list[int]) -> Feature:
    theta, phi, gamma = ((q / LEVELS * 2 - 1) * math.pi for q in row[6:9])
    px, py, pz = (q / LEVELS * 2 - 1 for q in row[9:12])
    size = row[12] / LEVELS * 2
    one, two = (q / LEVELS * 2 - 1 for q in row[13:15])
    operation, extent_type = row[15], row[16]
    if operation not in range(4) or extent_type not in range(3) or size <= 0:
        raise DeepCadError(f"operation {operation}, extent type {extent_type} or size {size} is not allowed")
    normal, x_axis = frame_from_angles(theta, phi, gamma)
    frame = Frame((px, py, pz), normal, x_axis, cross(normal, x_axis))
    step = size / GRID_REACH
    made = tuple(Loop(tuple(_curves(loop, step))) for loop in loops)
    return Feature(frame, made, operation, extent_type, one, two if extent_type == 2 else 0.0)


def _curves(rows: list[list[int]], step: float) -> list[Curve]:
    def local(x: int, y: int) -> Vec2:
        return ((x - GRID_CENTER) * step, (y - GRID_CENTER) * step)

    curves: list[Curve] = []
    previous = local(*rows[-1][1:3])
    for row in rows:
        command, end = row[0], local(row[1], row[2])
        if command == CIRCLE:
            curves.append(Circle(end, row[5] * step))
            continue
        if command == LINE:
            curves.append(Line(previous, end))
        else:
            curves.append(Arc(previous, end, _mid(previous, end, row[3] * 2 * math.pi / LEVELS, row[4] == 1)))
        previous = end
    return curves


def _mid(start: Vec2, end: Vec2, sweep: float, counter_clockwise: bool) -> Vec2:
    if not 0 < sweep < 2 * math.pi:
        raise DeepCadError(f"an arc sweeps more than 0 and less than a full turn, found {sweep:.4g} rad")
    half = math.tan(sweep / 4) / 2 * (1 if counter_clockwise else -1)
    dx, dy = end[0] - start[0], end[1] - start[1]
    return ((start[0] + end[0]) / 2 + half * dy, (start[1] + end[1]) / 2 - half * dx)


# writing -------------------------------------------------------------------------------------------------------


def write_vector(program: Program, scale: float | Literal["keep"] | None = None) -> np.ndarray:
    """A program as rows of 256 levels, (n, 17) int64, ending with EOS.

    Args:
        program: Any program.
        scale: See `mm.cad.to_deepcad`.

    Raises:
        ValueError: the part does not fit the limits of the format.
    """
    factor = 1.0 if isinstance(scale, str) else scale
    if factor is None:
        low, high = part_box(program)
        factor = _UNIT_CUBE / max(abs(value) for value in (*low, *high))
    if len(program.extrudes) > MAX_EXTRUDES:
        raise ValueError(f"a vector holds {MAX_EXTRUDES} extrudes, the program has {len(program.extrudes)}")
    rows: list[list[int]] = []
    for index, (extrude, frame) in enumerate(zip(program.extrudes, resolve_planes(program), strict=True)):
        rows += _rows(index, extrude, frame, factor, keep_grid=scale == "keep")
    rows.append([END] + [-1] * (COLUMNS - 1))
    if len(rows) > MAX_ROWS:
        raise ValueError(f"a vector holds {MAX_ROWS} rows, the program needs {len(rows)}")
    return np.array(rows, dtype=np.int64)


def _rows(index: int, extrude: Extrude, frame: Frame, scale: float, *, keep_grid: bool) -> list[list[int]]:
    loops = [loop.curves for loop in extrude.loops]
    longest = max(len(loop) for loop in loops)
    if len(loops) > MAX_LOOPS or longest > MAX_CURVES:
        raise ValueError(
            f"a vector holds {MAX_LOOPS} loops of {MAX_CURVES} curves per extrude; "
            f"extrude {index} has {len(loops)} loops of up to {longest}"
        )
    start, size = start_of(loops[0][0]), _profile_size(loops)
    if keep_grid:
        start, size = _grid(loops, start, size, scale)
    rows = []
    for loop in loops:
        rows.append([START_OF_LOOP] + [-1] * (COLUMNS - 1))
        rows += [_curve_row(curve, start, GRID_REACH / size) for curve in loop]
    theta, phi, gamma = (_angle_level(angle) for angle in frame_angles(frame.normal, frame.x_axis))
    position = [_level((value * scale + 1) / 2) for value in frame.point(start)]
    extents = [_level((value * scale + 1) / 2) for value in (extrude.extent_one, extrude.extent_two)]
    kinds = [int(extrude.operation), int(extrude.extent_type)]
    size_level = _level(size * scale / 2)
    rows.append([EXTRUDE, -1, -1, -1, -1, -1, theta, phi, gamma, *position, size_level, *extents, *kinds])
    return rows


def _profile_size(loops: list[tuple[Curve, ...]]) -> float:
    """Largest distance along an axis from the first point to a side of the box, mm."""
    start = start_of(loops[0][0])
    low, high = loop_box(tuple(curve for loop in loops for curve in loop))
    return max(abs(corner[i] - start[i]) for corner in (low, high) for i in range(2))


def _grid(loops: list[tuple[Curve, ...]], start: Vec2, size: float, scale: float) -> tuple[Vec2, float]:
    """First point and size of the grid on which the profile already lies, or those given."""
    near = max(1, round(size * scale / 2 * LEVELS))
    for origin in ((0.0, 0.0), start):
        for level in sorted(range(1, LEVELS), key=lambda level: abs(level - near)):
            candidate = level / LEVELS * 2 / scale
            if _lies_on_grid(loops, origin, GRID_REACH / candidate):
                return origin, candidate
    return start, size


def _lies_on_grid(loops: list[tuple[Curve, ...]], origin: Vec2, steps: float) -> bool:
    for loop in loops:
        for curve in loop:
            point = curve.center if isinstance(curve, Circle) else curve.end
            values = [GRID_CENTER + (point[i] - origin[i]) * steps for i in range(2)]
            if isinstance(curve, Circle):
                values.append(curve.radius * steps)
            if any(abs(v - round(v)) > _ON_GRID or not 0 <= round(v) < LEVELS for v in values):
                return False
    return True


def _curve_row(curve: Curve, start: Vec2, steps: float) -> list[int]:
    """Row of a curve; `steps` = grid steps per mm."""

    def grid(point: Vec2) -> list[int]:
        return [_clip(GRID_CENTER + (point[i] - start[i]) * steps) for i in range(2)]

    rest = [-1] * (COLUMNS - 6)
    if isinstance(curve, Circle):
        return [CIRCLE, *grid(curve.center), -1, -1, _clip(abs(curve.radius) * steps), *rest]
    if isinstance(curve, Line):
        return [LINE, *grid(curve.end), -1, -1, -1, *rest]
    circle = arc_circle(curve) or ArcCircle(curve.mid, math.inf, 0.0, 0.0)  # on a line: no sweep
    sweep = max(1, _level(abs(circle.sweep) / (2 * math.pi)))
    return [ARC, *grid(curve.end), sweep, int(circle.sweep > 0), -1, *rest]


def _angle_level(angle: float) -> int:
    level = round((angle / math.pi + 1) / 2 * LEVELS)
    return level % LEVELS  # pi = -pi


def _level(share: float) -> int:
    return _clip(share * LEVELS)


def _clip(value: float) -> int:
    return min(LEVELS - 1, max(0, round(value)))
