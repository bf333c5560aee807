"""Directions as angles, the way DeepCAD stores frames: theta, phi of the normal, gamma of the x axis about it.

    normal = (sin theta cos phi, sin theta sin phi, cos theta)
    x_ref  = (cos theta cos phi, cos theta sin phi, -sin theta)       x = x_ref cos gamma + (normal x x_ref) sin gamma

`frame_angles` is exact (atan2, full precision). The published code takes arctan(y / x), which loses the sign of both
for a negative x, and rounds; `mm.cad.legacy_frames` repeats that where released data must be reproduced.

Source: DeepCAD (Wu et al. 2021), section 3.1, as used by OpenECAD.
"""

from __future__ import annotations

import math

from mm.cad.program import Vec3
from mm.cad.vectors import add, cross, dot, scaled

_POLE = 1e-9
"""Sine of theta below which phi has no meaning and is 0."""


def direction(theta: float, phi: float) -> Vec3:
    """Unit vector of two polar angles, radians."""
    return (math.sin(theta) * math.cos(phi), math.sin(theta) * math.sin(phi), math.cos(theta))


def reference_x(theta: float, phi: float) -> Vec3:
    """The x axis at gamma = 0."""
    # + 0.0: a zero is +0, as in the matrix product of the published code; printed vectors show the sign.
    return (math.cos(theta) * math.cos(phi) + 0.0, math.cos(theta) * math.sin(phi) + 0.0, -math.sin(theta) + 0.0)


def frame_from_angles(theta: float, phi: float, gamma: float) -> tuple[Vec3, Vec3]:
    """(normal, x axis) of three angles, radians."""
    normal, reference = direction(theta, phi), reference_x(theta, phi)
    turned = cross(normal, reference)
    return normal, add(scaled(reference, math.cos(gamma)), turned, math.sin(gamma))


def frame_angles(normal: Vec3, x_axis: Vec3) -> tuple[float, float, float]:
    """(theta, phi, gamma) of an orthonormal frame: 0 <= theta <= pi, -pi < phi, gamma <= pi.

    Example:
        >>> theta, phi, gamma = frame_angles((0.0, -1.0, 0.0), (1.0, 0.0, 0.0))
        >>> round(theta, 4), round(phi, 4), round(gamma, 4)
        (1.5708, -1.5708, 1.5708)
    """
    flat = math.hypot(normal[0], normal[1])
    theta = math.atan2(flat, normal[2])
    phi = math.atan2(normal[1], normal[0]) if flat > _POLE else 0.0
    reference = reference_x(theta, phi)
    gamma = math.atan2(dot(cross(reference, x_axis), normal), dot(reference, x_axis))
    return theta, phi, gamma
