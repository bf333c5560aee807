"""A finished part: its measures, its mesh, and its files."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mm.cad.kernel import files
from mm.cad.kernel.isolate import run_isolated
from mm.cad.kernel.manifold import MESH_FILE, properties
from mm.cad.kernel.status import BuildError, Limits, Outcome
from mm.cad.mesh import Floats, Mesh, weld
from mm.checkpoint import write_aside
from mm.extras import require

Kernel = Literal["occ", "mesh"]
SHAPE_FILE = "shape.brep"
EXACT_FORMATS = (".step", ".stp", ".brep")
MESH_FORMATS = {".stl": files.stl, ".glb": files.glb, ".3mf": files.three_mf}
READABLE_MESHES = (".stl", ".obj", ".ply", ".off", ".glb")


@dataclass(frozen=True, eq=False)
class Solid:
    """What `build` returns. Lengths in mm.

    Args:
        kernel: Who made it.
        mesh: Its surface as triangles.
        measured: Mass properties as the kernel reports them.
        shape: The exact shape as BREP text; None from the mesh kernel.
        seconds: Time the kernel took.
    """

    kernel: Kernel
    mesh: Mesh
    measured: dict[str, Any]
    shape: bytes | None = field(default=None, repr=False)
    seconds: float = 0.0

    @property
    def volume(self) -> float:
        """mm³."""
        return float(self.measured["volume"])

    @property
    def area(self) -> float:
        """mm²."""
        return float(self.measured["area"])

    @cached_property
    def centroid(self) -> Floats:
        """Centre of mass, (3,) mm."""
        return np.array(self.measured["centroid"], dtype=np.float64)

    @cached_property
    def bounds(self) -> Floats:
        """Lowest and highest coordinates, (2, 3) mm."""
        return np.array(self.measured["bounds"], dtype=np.float64)

    @property
    def is_valid(self) -> bool:
        """Whether the kernel finds nothing wrong: a closed surface around some volume."""
        return bool(self.measured["is_valid"]) and self.volume > 0

    def export(self, path: str | Path, *, limits: Limits | None = None) -> Path:
        """Write the part; the ending chooses the format: .step, .brep (exact kernel), .stl, .glb, .3mf.

        Raises:
            ValueError: another ending, or an exact format from the mesh kernel.
            BuildError: `unwritable-output`, or the kernel's own status.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix not in (*EXACT_FORMATS, *MESH_FORMATS):
            known = ", ".join((*EXACT_FORMATS, *MESH_FORMATS))
            raise ValueError(f"{path.name}: unknown format {suffix or '(no ending)'}; choose one of {known}")
        if suffix in EXACT_FORMATS and self.shape is None:
            raise ValueError(f"{path.name}: {suffix} needs the exact shape; build with kernel='occ'")
        data = MESH_FORMATS[suffix](self.mesh) if suffix in MESH_FORMATS else self._exact(suffix, limits or Limits())
        try:
            with write_aside(path) as temporary:
                temporary.write_bytes(data)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise BuildError("unwritable-output", f"{path}: {reason}; choose another place") from error
        return path

    def _exact(self, suffix: str, limits: Limits) -> bytes:
        assert self.shape is not None
        if suffix == ".brep":
            return self.shape
        with tempfile.TemporaryDirectory(prefix="mm-cad-") as name:
            folder = Path(name)
            (folder / SHAPE_FILE).write_bytes(self.shape)
            _done(run_isolated("mm.cad.kernel.occ:write_step", {"name": "part.step"}, folder, limits))
            return (folder / "part.step").read_bytes()


def load_solid(path: str | Path, *, limits: Limits | None = None) -> Solid:
    """A part from a file: STEP and BREP by the exact kernel, meshes (.stl, .obj, .ply, .off, .glb) by trimesh.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another format, or damaged.
        BuildError: the kernel's status.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    suffix = path.suffix.lower()
    if suffix in EXACT_FORMATS:
        return run_to_solid("mm.cad.kernel.occ:load", {"path": str(path.resolve())}, "occ", limits or Limits())
    if suffix not in READABLE_MESHES:
        raise ValueError(f"{path.name}: unknown format; readable are {', '.join((*EXACT_FORMATS, *READABLE_MESHES))}")
    trimesh = require("trimesh", extra="cad", purpose=f"Reading {suffix} files")
    try:
        found = trimesh.load_mesh(path, process=False)
        vertices, triangles = np.array(found.vertices, np.float64), np.array(found.faces, np.int64)
    except Exception as error:  # every format has its own errors for damage
        raise ValueError(f"{path}: not a readable {suffix} file ({error})") from error
    if not len(triangles):
        raise ValueError(f"{path}: holds no triangle")
    if suffix == ".glb":  # metres, y up
        vertices = vertices[:, [0, 2, 1]] * [1, -1, 1] * files.MM_PER_METRE
    mesh = weld(vertices, triangles, 1e-7 * float(np.linalg.norm(np.ptp(vertices, axis=0))))
    return Solid("mesh", mesh, properties(mesh))


def run_to_solid(task: str, payload: dict[str, Any], kernel: Kernel, limits: Limits) -> Solid:
    """Run a task that leaves a shape and a mesh, isolated, and pick them up."""
    with tempfile.TemporaryDirectory(prefix="mm-cad-") as name:
        outcome = _done(run_isolated(task, payload, Path(name), limits))
        return read_solid(Path(name), outcome.result, kernel, outcome.seconds)


def read_solid(folder: Path, measured: dict[str, Any], kernel: Kernel, seconds: float) -> Solid:
    """A solid from the files that a kernel task left."""
    with np.load(folder / MESH_FILE, allow_pickle=False) as arrays:
        mesh = Mesh(arrays["vertices"].astype(np.float64), arrays["triangles"].astype(np.int64))
    shape = folder / SHAPE_FILE
    return Solid(kernel, mesh, measured, shape.read_bytes() if shape.is_file() else None, seconds)


def _done(outcome: Outcome) -> Outcome:
    if outcome.status == "not-installed":
        raise ImportError(outcome.message)
    if outcome.status != "ok":
        raise BuildError(outcome.status, outcome.message.removesuffix(f" [{outcome.status}]"))
    return outcome
