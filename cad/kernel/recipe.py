"""What a kernel needs of a program, as plain data: absolute frames, loops, spans and boolean operations.

This is the only thing that crosses into the isolated process.
"""

from __future__ import annotations

from typing import Any

from mm.cad.kernel.status import BuildError

NEW, JOIN, CUT, INTERSECT = range(4)
Feature = dict[str, Any]
"""`origin`, `normal`, `x_axis`, `y_axis` (3 numbers each), `loops`, `operation`; `low`, `high`: mm along the normal."""


def check_span(low: float, high: float, feature: int) -> None:
    """Refuse an extrude without thickness.

    Raises:
        BuildError: `zero-thickness`.
    """
    if high - low < 1e-9:
        raise BuildError("zero-thickness", "the extents give no thickness; set extent_one above 0", feature=feature)
