"""From a program to a solid."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mm.cad.kernel import manifold
from mm.cad.kernel.recipe import Feature
from mm.cad.kernel.solid import Kernel, Solid, read_solid, run_to_solid
from mm.cad.kernel.status import Limits
from mm.cad.loops import canonical_profile
from mm.cad.planes import resolve_planes
from mm.cad.program import Arc, Circle, Curve, Program

TASKS = {"occ": "mm.cad.kernel.occ:evaluate", "mesh": "mm.cad.kernel.manifold:evaluate"}
DEFAULT_LIMITS = Limits()


def build(
    program: Program | str, kernel: Kernel = "occ", limits: Limits | None = DEFAULT_LIMITS, **options: Any
) -> Solid:
    """Evaluate a program: every extrude is joined to, cut from or intersected with the body before it.

    Args:
        program: A program, or its text.
        kernel: "occ": exact (OpenCASCADE); "mesh": quick, curves as polygons (Manifold).
        limits: What the child process that does the work may use. None works in this process, without protection:
            only for programs you trust.
        options: For the mesh kernel: `angle`, the largest turn per segment of a curve, radians.

    Raises:
        BuildError: the program has no solid, or its evaluation did not end; `.status` says which.
        ProgramError: the text is no program.
        ImportError: the kernel is not installed.

    Source: paper section 3 and the released executor: the first extrude is the body, a new body is joined.
    Deviation: new bodies are joined to the body like the released executor does, not kept apart.
    """
    if kernel not in TASKS:
        raise ValueError(f"kernel must be one of {', '.join(TASKS)}, got {kernel!r}")
    unknown = set(options) - ({"angle"} if kernel == "mesh" else set())
    if unknown:
        raise ValueError(f"the {kernel} kernel has no option {', '.join(sorted(unknown))}")
    if isinstance(program, str):
        from mm.cad.parser import parse

        program = parse(program)
    payload = {"features": features(program), **options}
    if limits is not None:
        return run_to_solid(TASKS[kernel], payload, kernel, limits)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mm-cad-") as name:
        measured = _evaluate(kernel)(payload, Path(name))
        return read_solid(Path(name), measured, kernel, time.monotonic() - begun)


def _evaluate(kernel: Kernel) -> Any:
    if kernel == "mesh":
        return manifold.evaluate
    from mm.cad.kernel import occ

    occ.preload()
    return occ.evaluate


def features(program: Program) -> list[Feature]:
    """The program as plain data with absolute frames and canonical loops."""
    rows = []
    for extrude, frame in zip(program.extrudes, resolve_planes(program), strict=True):
        loops = [[curve_row(curve) for curve in loop.curves] for loop in canonical_profile(extrude).loops]
        low, high = extrude.span
        rows.append({**asdict(frame), "loops": loops, "operation": int(extrude.operation), "low": low, "high": high})
    return rows


def curve_row(curve: Curve) -> dict[str, Any]:
    """A curve as plain data."""
    if isinstance(curve, Circle):
        return {"kind": "circle", "center": list(curve.center), "radius": curve.radius}
    row: dict[str, Any] = {"kind": "line", "start": list(curve.start), "end": list(curve.end)}
    return {**row, "kind": "arc", "mid": list(curve.mid)} if isinstance(curve, Arc) else row
