"""Vector arithmetic on tuples: three numbers are too few for an array library."""

from __future__ import annotations

import math

from mm.cad.program import Vec2, Vec3


def dot(a: Vec3, b: Vec3) -> float:
    """Inner product."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def cross(a: Vec3, b: Vec3) -> Vec3:
    """Vector product."""
    return (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])


def add(a: Vec3, b: Vec3, scale: float = 1.0) -> Vec3:
    """a + scale b."""
    return (a[0] + scale * b[0], a[1] + scale * b[1], a[2] + scale * b[2])


def sub(a: Vec3, b: Vec3) -> Vec3:
    """a - b."""
    return (a[0] - b[0], a[1] - b[1], a[2] - b[2])


def scaled(a: Vec3, factor: float) -> Vec3:
    """factor a."""
    return (a[0] * factor, a[1] * factor, a[2] * factor)


def norm(a: Vec3) -> float:
    """Length."""
    return math.hypot(*a)


def rotated(a: Vec3, axis: Vec3, angle: float) -> Vec3:
    """`a` (perpendicular to the unit vector `axis`) turned counter-clockwise about it, radians."""
    return add(scaled(a, math.cos(angle)), cross(axis, a), math.sin(angle))


def cross2(a: Vec2, b: Vec2) -> float:
    """Signed area of the parallelogram of two plane vectors."""
    return a[0] * b[1] - a[1] * b[0]


def sub2(a: Vec2, b: Vec2) -> Vec2:
    """a - b."""
    return (a[0] - b[0], a[1] - b[1])


def distance2(a: Vec2, b: Vec2) -> float:
    """Distance of two plane points."""
    return math.hypot(a[0] - b[0], a[1] - b[1])
