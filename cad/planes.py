"""Where each sketch lies in space: planes resolved to right-handed orthonormal frames.

A plane is absolute (origin, normal, x axis) or follows an earlier extrude: its sketch plane, its upper or lower face,
or the side face over one of its lines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mm.cad.program import Program, Vec2, Vec3


@dataclass(frozen=True, slots=True)
class Frame:
    """A sketch plane in space: unit vectors, right-handed (y = normal x x_axis)."""

    origin: Vec3
    """mm."""
    normal: Vec3
    """The extrude direction for a positive `extent_one`."""
    x_axis: Vec3
    y_axis: Vec3

    def point(self, uv: Vec2, height: float = 0.0) -> Vec3:
        """The point in space at sketch coordinates (u, v), `height` mm along the normal.

        Example:
            >>> Frame((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)).point((2.0, 3.0), 4.0)
            (3.0, 3.0, 4.0)
        """
        u, v = uv
        o, n, x, y = self.origin, self.normal, self.x_axis, self.y_axis
        return (
            o[0] + u * x[0] + v * y[0] + height * n[0],
            o[1] + u * x[1] + v * y[1] + height * n[1],
            o[2] + u * x[2] + v * y[2] + height * n[2],
        )


def resolve_planes(program: Program, frames: Literal["exact", "legacy"] = "exact") -> tuple[Frame, ...]:
    """The frame of every extrude, in building order."""
    raise NotImplementedError
