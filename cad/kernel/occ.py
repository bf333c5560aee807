"""The exact kernel: OpenCASCADE through its Python bindings (OCP), without a viewer.

Prisms of planar faces, joined, cut and intersected in order; neighbouring faces on one surface are merged at the end.
Runs inside the isolated process (`worker`); nothing here is safe to call on untrusted programs in one's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mm.cad.kernel.manifold import EMPTY_MM3, MESH_FILE
from mm.cad.kernel.outline import outer_and_holes
from mm.cad.kernel.recipe import CUT, INTERSECT, Feature, check_span
from mm.cad.kernel.status import BuildError
from mm.cad.mesh import Floats, Mesh, weld
from mm.extras import require

SHAPE_FILE = "shape.brep"
FUZZY_MM = 1e-3
"""Largest gap that boolean operations close: programs carry four decimals, so touching bodies may miss by 1e-4."""
INTEGRATION = 1e-9
"""Relative error of volumes and areas; without it a cylinder cut by another is off by some 1e-5."""
ANGLE = math.radians(10.0)
"""Largest turn per triangle of the tessellation."""
CHORD = 1e-3
"""Largest distance between surface and tessellation, relative to the diagonal."""


def require_occ(purpose: str) -> None:
    """Raise an error that names the extra if OpenCASCADE is missing."""
    require("OCP", extra="cad", purpose=purpose)


def preload() -> None:
    """Load the kernel; the helper process does so once, before it forks."""
    require_occ("The exact kernel")
    from OCP.BRepAlgoAPI import BRepAlgoAPI_Fuse  # noqa: F401


def evaluate(payload: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Task of the isolated process: features -> shape and mesh files, mass properties."""
    return describe(build_shape(payload["features"]), folder)


def describe(shape: Any, folder: Path) -> dict[str, Any]:
    """Write the shape and its mesh to `folder`; return its mass properties as plain data."""
    from OCP.BRepTools import BRepTools

    found = mass_properties(shape)
    mesh = tessellate(shape)
    np.savez(folder / MESH_FILE, vertices=mesh.vertices, triangles=mesh.triangles)
    BRepTools.Clean_s(shape)
    if not BRepTools.Write_s(shape, str(folder / SHAPE_FILE)):
        raise BuildError("unwritable-output", f"the shape could not be written to {folder}")
    return found


def build_shape(features: Sequence[Feature]) -> Any:
    """Evaluate features in order; the first is the body whatever its operation says.

    Raises:
        BuildError: a bad profile, no thickness, an empty result, or the kernel gave up.
    """
    if not features:
        raise BuildError("empty-result", "the program has no extrude")
    body, emptied = None, 0
    for index, feature in enumerate(features):
        part, operation = _prism(feature, index), feature["operation"]
        if body is not None:
            body = _merged(_combine(body, part, operation, index))
        elif index == 0 or operation not in (CUT, INTERSECT):
            body = part
        if body is not None and abs(_volume(body)) < EMPTY_MM3:
            body, emptied = None, index
    if body is None:
        raise BuildError("empty-result", "nothing is left after this operation", feature=emptied)
    return body


# --- features ----------------------------------------------------------------------------------------------------


def _prism(feature: Feature, index: int) -> Any:
    from OCP.BRepBuilderAPI import BRepBuilderAPI_MakeFace
    from OCP.BRepPrimAPI import BRepPrimAPI_MakePrism
    from OCP.gp import gp_Ax3, gp_Dir, gp_Pln, gp_Pnt, gp_Vec

    check_span(feature["low"], feature["high"], index)
    outer, holes = outer_and_holes(feature["loops"], index)
    axes = np.array([feature["x_axis"], feature["y_axis"]], dtype=np.float64)  # (2, 3)
    normal = np.array(feature["normal"], dtype=np.float64)
    base = np.array(feature["origin"], dtype=np.float64) + feature["low"] * normal
    plane = gp_Pln(gp_Ax3(gp_Pnt(*base), gp_Dir(*normal), gp_Dir(*axes[0])))
    maker = BRepBuilderAPI_MakeFace(plane, _wire(outer, base, axes, normal, index), True)
    for hole in holes:
        maker.Add(_wire(hole, base, axes, normal, index))
    if not maker.IsDone():
        raise BuildError("kernel-error", f"no face from the profile ({maker.Error().name})", feature=index)
    face = _oriented(maker.Face())
    return BRepPrimAPI_MakePrism(face, gp_Vec(*((feature["high"] - feature["low"]) * normal))).Shape()


def _oriented(face: Any) -> Any:
    """The face with every wire turned as the kernel wants it: outer one around, holes against."""
    from OCP.ShapeFix import ShapeFix_Face

    fix = ShapeFix_Face(face)
    fix.FixOrientation()
    fix.Perform()
    return fix.Face()


def _wire(loop: Sequence[dict[str, Any]], base: Floats, axes: Floats, normal: Floats, index: int) -> Any:
    from OCP.BRepBuilderAPI import BRepBuilderAPI_MakeWire

    maker = BRepBuilderAPI_MakeWire()
    for curve in loop:
        maker.Add(_edge(curve, base, axes, normal))
        if not maker.IsDone():
            raise BuildError("kernel-error", f"no wire from the loop ({maker.Error().name})", feature=index)
    return maker.Wire()


def _edge(curve: dict[str, Any], base: Floats, axes: Floats, normal: Floats) -> Any:
    from OCP.BRepBuilderAPI import BRepBuilderAPI_MakeEdge
    from OCP.GC import GC_MakeArcOfCircle
    from OCP.gp import gp_Ax2, gp_Circ, gp_Dir, gp_Pnt

    def point(uv: Any) -> Any:
        return gp_Pnt(*(base + np.asarray(uv, dtype=np.float64) @ axes))

    if curve["kind"] == "circle":
        frame = gp_Ax2(point(curve["center"]), gp_Dir(*normal), gp_Dir(*axes[0]))
        return BRepBuilderAPI_MakeEdge(gp_Circ(frame, abs(curve["radius"]))).Edge()
    if curve["kind"] == "line":
        return BRepBuilderAPI_MakeEdge(point(curve["start"]), point(curve["end"])).Edge()
    arc = GC_MakeArcOfCircle(point(curve["start"]), point(curve["mid"]), point(curve["end"])).Value()
    return BRepBuilderAPI_MakeEdge(arc).Edge()


def _combine(body: Any, part: Any, operation: int, index: int) -> Any:
    """One boolean operation: exact, and with a tolerance where the exact result shows a gap of rounding."""
    exact = _boolean(body, part, operation, 0.0)
    joins = operation not in (CUT, INTERSECT)
    if exact is not None and not (joins and _solids(exact) > _solids(body)):
        return exact
    tolerant = _boolean(body, part, operation, min(FUZZY_MM, 1e-4 * _diagonal(part)))
    if exact is None and tolerant is None:
        raise BuildError("kernel-error", "the boolean operation gave no result", feature=index)
    if exact is None or tolerant is None:
        return tolerant if exact is None else exact
    closes = _solids(tolerant) < _solids(exact) and math.isclose(_volume(tolerant), _volume(exact), rel_tol=1e-4)
    return tolerant if closes else exact


def _boolean(body: Any, part: Any, operation: int, fuzzy: float) -> Any:
    """Result of one boolean operation, None if the kernel gives none."""
    from OCP.BRepAlgoAPI import BRepAlgoAPI_Common, BRepAlgoAPI_Cut, BRepAlgoAPI_Fuse
    from OCP.collections import List_TopoDS_Shape

    maker = {CUT: BRepAlgoAPI_Cut, INTERSECT: BRepAlgoAPI_Common}.get(operation, BRepAlgoAPI_Fuse)()
    for give, shape in ((maker.SetArguments, body), (maker.SetTools, part)):
        items = List_TopoDS_Shape()
        items.Append(shape)
        give(items)
    maker.SetFuzzyValue(fuzzy)
    maker.SetRunParallel(False)
    maker.Build()
    return maker.Shape() if maker.IsDone() and not maker.Shape().IsNull() else None


def _solids(shape: Any) -> int:
    from OCP.TopAbs import TopAbs_SOLID

    return sum(1 for _ in _explore(shape, TopAbs_SOLID))


def _merged(shape: Any) -> Any:
    """Faces that lie on one surface, and edges on one curve, become one."""
    from OCP.ShapeUpgrade import ShapeUpgrade_UnifySameDomain

    merger = ShapeUpgrade_UnifySameDomain(shape, True, True, True)
    merger.Build()
    merged = merger.Shape()
    sound = not merged.IsNull() and math.isclose(_volume(merged), _volume(shape), rel_tol=1e-4)
    return merged if sound else shape


# --- measures ----------------------------------------------------------------------------------------------------


def _volume(shape: Any) -> float:
    from OCP.BRepGProp import BRepGProp
    from OCP.GProp import GProp_GProps

    found = GProp_GProps()
    BRepGProp.VolumeProperties_s(shape, found)  # the plain integral: quick and good to 1e-5
    return float(found.Mass())


def _box(shape: Any) -> Floats:
    from OCP.Bnd import Bnd_Box
    from OCP.BRepBndLib import BRepBndLib

    box = Bnd_Box()
    BRepBndLib.AddOptimal_s(shape, box, False, False)
    low, high = box.CornerMin(), box.CornerMax()
    return np.array([[low.X(), low.Y(), low.Z()], [high.X(), high.Y(), high.Z()]])


def _diagonal(shape: Any) -> float:
    low, high = _box(shape)
    return float(np.linalg.norm(high - low))


def mass_properties(shape: Any) -> dict[str, Any]:
    """Volume, area, centroid, bounds, numbers of solids and faces, validity."""
    from OCP.BRepCheck import BRepCheck_Analyzer
    from OCP.BRepGProp import BRepGProp
    from OCP.GProp import GProp_GProps
    from OCP.TopAbs import TopAbs_FACE

    body, skin = GProp_GProps(), GProp_GProps()
    BRepGProp.VolumeProperties_s(shape, body, INTEGRATION)
    BRepGProp.SurfaceProperties_s(shape, skin, INTEGRATION)
    middle = body.CentreOfMass()
    return {
        "volume": float(body.Mass()),
        "area": float(skin.Mass()),
        "centroid": [middle.X(), middle.Y(), middle.Z()],
        "bounds": _box(shape).tolist(),
        "is_valid": bool(BRepCheck_Analyzer(shape).IsValid()),
        "solids": _solids(shape),
        "faces": sum(1 for _ in _explore(shape, TopAbs_FACE)),
    }


def _explore(shape: Any, kind: Any) -> Iterator[Any]:
    from OCP.TopExp import TopExp_Explorer

    explorer = TopExp_Explorer(shape, kind)
    while explorer.More():
        yield explorer.Current()
        explorer.Next()


def tessellate(shape: Any) -> Mesh:
    """Triangles of all faces, welded along the edges they share."""
    from OCP.BRep import BRep_Tool
    from OCP.BRepMesh import BRepMesh_IncrementalMesh
    from OCP.TopAbs import TopAbs_FACE, TopAbs_REVERSED
    from OCP.TopLoc import TopLoc_Location
    from OCP.TopoDS import TopoDS

    size = _diagonal(shape)
    BRepMesh_IncrementalMesh(shape, CHORD * size, False, ANGLE, False)
    points, triangles, offset = [], [], 0
    for found in _explore(shape, TopAbs_FACE):
        face, location = TopoDS.Face(found), TopLoc_Location()
        surface = BRep_Tool.Triangulation_s(face, location)
        if surface is None:
            raise BuildError("kernel-error", "a face has no tessellation")
        move = location.Transformation()
        nodes = [surface.Node(i + 1).Transformed(move) for i in range(surface.NbNodes())]
        rows = np.array([surface.Triangle(i + 1).Get() for i in range(surface.NbTriangles())]).reshape(-1, 3) - 1
        points.append([(node.X(), node.Y(), node.Z()) for node in nodes])
        triangles.append(offset + (rows[:, ::-1] if face.Orientation() == TopAbs_REVERSED else rows))
        offset += len(nodes)
    return weld(np.concatenate([np.array(p) for p in points]), np.concatenate(triangles), 1e-7 * max(size, 1e-6))


# --- files -------------------------------------------------------------------------------------------------------


def read_shape(path: Path) -> Any:
    """The shape in a BREP or STEP file.

    Raises:
        BuildError: the file is damaged or holds no shape.
    """
    from OCP.BRep import BRep_Builder
    from OCP.BRepTools import BRepTools
    from OCP.IFSelect import IFSelect_RetDone
    from OCP.STEPControl import STEPControl_Reader
    from OCP.TopoDS import TopoDS_Shape

    if path.suffix.lower() == ".brep":
        shape = TopoDS_Shape()
        done = BRepTools.Read_s(shape, str(path), BRep_Builder())
    else:
        reader = STEPControl_Reader()
        done = reader.ReadFile(str(path)) == IFSelect_RetDone and reader.TransferRoots() > 0
        shape = reader.OneShape() if done else TopoDS_Shape()
    if not done or shape.IsNull():
        raise BuildError("kernel-error", f"{path.name} holds no readable shape")
    return shape


def load(payload: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Task of the isolated process: a STEP or BREP file -> shape and mesh files, mass properties."""
    return describe(read_shape(Path(payload["path"])), folder)


def write_step(payload: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Task of the isolated process: the shape of `folder` as a STEP file (AP242, mm) beside it."""
    from OCP.IFSelect import IFSelect_RetDone
    from OCP.Interface import Interface_Static
    from OCP.STEPControl import STEPControl_AsIs, STEPControl_Writer

    writer = STEPControl_Writer()
    Interface_Static.SetCVal_s("write.step.schema", "AP242DIS")
    Interface_Static.SetCVal_s("write.step.unit", "MM")
    Interface_Static.SetCVal_s("write.step.product.name", "part")
    if writer.Transfer(read_shape(folder / SHAPE_FILE), STEPControl_AsIs) != IFSelect_RetDone:
        raise BuildError("kernel-error", "the shape has no STEP form")
    if writer.Write(str(folder / payload["name"])) != IFSelect_RetDone:
        raise BuildError("unwritable-output", "the STEP file could not be written; is the disk full?")
    return {}
