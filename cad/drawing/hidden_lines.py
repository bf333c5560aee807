"""Exact hidden-line drawings as SVG: the kernel projects the edges and tells visible from hidden ones.

Needs the exact kernel; circles and arcs become polylines of at most one degree per step.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mm.cad.drawing.camera import MARGIN, fit
from mm.cad.kernel import BuildError, Limits, Solid
from mm.cad.kernel.isolate import run_isolated
from mm.cad.kernel.occ import SHAPE_FILE, read_shape, require_occ

LINES_FILE = "lines.json"
STEP = math.radians(1.0)
VISIBLE, HIDDEN = 'stroke="#111" stroke-width="1.2"', 'stroke="#999" stroke-width="0.6" stroke-dasharray="3 2"'


def preload() -> None:
    """Load the kernel; the helper process does so once, before it forks."""
    require_occ("A hidden-line drawing")
    from OCP.HLRBRep import HLRBRep_Algo  # noqa: F401


def hidden_line_svg(
    solid: Solid,
    view: str | Sequence[float] = "iso",
    size: int | tuple[int, int] = 480,
    *,
    hidden: bool = True,
    limits: Limits | None = None,
) -> str:
    """Draw a part of the exact kernel.

    Args:
        solid: From `build(kernel="occ")`.
        view: Name or direction from the part to the viewer.
        size: Side of the square drawing, or (width, height), pixels.
        hidden: Also draw hidden edges, dashed.
        limits: What the kernel may use.

    Returns:
        SVG text.

    Raises:
        ValueError: a solid of the mesh kernel, or a bad view.
        BuildError: the kernel's status.
    """
    if solid.shape is None:
        raise ValueError("a hidden-line drawing needs the exact shape; build with kernel='occ'")
    width, height = (size, size) if isinstance(size, int) else size
    camera = fit(solid.mesh.vertices, view, width, height, MARGIN)
    with tempfile.TemporaryDirectory(prefix="mm-cad-") as name:
        folder = Path(name)
        (folder / SHAPE_FILE).write_bytes(solid.shape)
        payload = {"back": camera.back.tolist(), "right": camera.right.tolist()}
        outcome = run_isolated("mm.cad.drawing.hidden_lines:project", payload, folder, limits or Limits())
        if outcome.status != "ok":
            raise BuildError(outcome.status, outcome.message)
        lines = json.loads((folder / LINES_FILE).read_text(encoding="utf-8"))
    groups = []
    for kind, look in (("hidden", HIDDEN), ("visible", VISIBLE)):
        if kind == "visible" or hidden:
            paths = "".join(_path(line, camera.scale, camera.shift) for line in lines[kind])
            groups.append(f'<g class="{kind}" fill="none" stroke-linecap="round" {look}>{paths}</g>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(groups)}</svg>\n'
    )


def _path(line: list[list[float]], scale: float, shift: Any) -> str:
    points = np.array(line) * [scale, -scale] + shift
    return f'<path d="M{" L".join(f"{x:.2f} {y:.2f}" for x, y in points.tolist())}"/>'


def project(payload: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Task of the isolated process: the shape of `folder` -> polylines in the picture plane, mm."""
    from OCP.gp import gp_Ax2, gp_Dir, gp_Pnt
    from OCP.HLRAlgo import HLRAlgo_Projector
    from OCP.HLRBRep import HLRBRep_Algo, HLRBRep_HLRToShape

    frame = gp_Ax2(gp_Pnt(0, 0, 0), gp_Dir(*payload["back"]), gp_Dir(*payload["right"]))
    algorithm = HLRBRep_Algo()
    algorithm.Add(read_shape(folder / SHAPE_FILE))
    algorithm.Projector(HLRAlgo_Projector(frame))
    algorithm.Update()
    algorithm.Hide()
    found = HLRBRep_HLRToShape(algorithm)
    kinds = {
        "visible": (found.VCompound, found.OutLineVCompound),
        "hidden": (found.HCompound, found.OutLineHCompound),
    }
    lines = {kind: [line for get in gets for line in _polylines(get())] for kind, gets in kinds.items()}
    (folder / LINES_FILE).write_text(json.dumps(lines), encoding="utf-8")
    return {kind: len(found) for kind, found in lines.items()}


def _polylines(shape: Any) -> list[list[tuple[float, float]]]:
    """The edges of a projected shape as points (x, y)."""
    from OCP.BRepAdaptor import BRepAdaptor_Curve
    from OCP.BRepLib import BRepLib
    from OCP.GCPnts import GCPnts_TangentialDeflection
    from OCP.TopAbs import TopAbs_EDGE
    from OCP.TopExp import TopExp_Explorer
    from OCP.TopoDS import TopoDS

    if shape is None or shape.IsNull():
        return []
    BRepLib.BuildCurves3d_s(shape)
    lines, explorer = [], TopExp_Explorer(shape, TopAbs_EDGE)
    while explorer.More():
        curve = BRepAdaptor_Curve(TopoDS.Edge(explorer.Current()))
        points = GCPnts_TangentialDeflection(curve, STEP, 1e6)
        values = [points.Value(index + 1) for index in range(points.NbPoints())]
        lines.append([(point.X(), point.Y()) for point in values])
        explorer.Next()
    return lines
