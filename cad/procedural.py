"""Parts without end: a part is a pure function of its seed, in the language that the models learn.

A part is an outline with holes, pulled out of one of three planes, and perhaps a boss or a pocket on its far face,
sketched on a plane that follows the first extrude. Its longest side always has the same length: a picture shows no
scale, so a model could not know it. What a program says can be seen in the iso view: pockets are so shallow that their
floor shows. Training, validation and test never meet, neither in seeds (`mm.data.split`) nor in parts: small whole
numbers give some parts again and again, so the text of a program decides which split it belongs to.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import numpy as np

from mm.cad.emitter import emit
from mm.cad.profiles import OUTLINES, circle
from mm.cad.program import (
    AbsolutePlane,
    Circle,
    ExtentType,
    Extrude,
    Loop,
    Operation,
    Program,
    RelativePlane,
    Vec2,
)
from mm.data.split import SplitName, generator, split_of

PLANES: dict[str, AbsolutePlane] = {
    "xy": AbsolutePlane((0.0, 0.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)),
    "yz": AbsolutePlane((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
    "zx": AbsolutePlane((0.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
}
"""Sketch planes whose normals point to the viewer of the iso view."""
EVEN = ("disc", "slot", "half_round")
"""Families with a half circle over their height: an even height keeps coordinates whole."""
HOLED = ("plate", "disc", "slot", "half_round", "rounded", "hexagon")
"""Families that are convex, so that holes fit by their box."""
FACED = ("plate", "disc", "slot", "rounded")
"""Families with a face that is broad enough for a boss or a pocket."""
LEGS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "angle": ((2, 3, 4, 6), (2, 3, 4, 6)),
    "tee": ((3, 4, 6), (2, 3, 4, 6)),
    "channel": ((3, 4, 5, 8), (2, 3, 4, 6)),
}
"""Families with legs: which shares of the width and of the height they may take."""
SHARES = 8
"""One of so many parts is for validation, one for tests, the others are for training."""
ATTEMPTS = 1000
"""Draws for one seed, of which one must belong to the seed's split."""


@dataclass(frozen=True, kw_only=True)
class PartConfig:
    """Which parts are made."""

    families: tuple[str, ...] = ("plate", "disc", "slot", "half_round", "triangle", "angle", "tee", "channel")
    """Outlines, drawn evenly; `rounded` and `hexagon` have coordinates that are not whole."""
    planes: tuple[str, ...] = ("xy", "yz", "zx")
    """Sketch planes."""
    longest: int = 24
    """Longest side of the box around every part, mm."""
    shortest: int = 4
    """Shortest side of an outline, mm."""
    holes: bool = True
    """Whether outlines may have holes."""
    second: float = 0.5
    """Share of the families with a broad face that get a second feature, a boss or a pocket, where it fits."""
    extents: tuple[int, ...] = (0,)
    """Extent types of the first extrude: 0 one side, 1 symmetric, 2 two sides."""

    def __post_init__(self) -> None:
        for name, values, known in (("families", self.families, OUTLINES), ("planes", self.planes, PLANES)):
            unknown = [value for value in values if value not in known]
            if unknown or not values:
                raise ValueError(f"{name} must be some of {', '.join(known)}, got {values}")
        if not 4 <= self.shortest <= self.longest // 3:
            raise ValueError(f"shortest must lie in 4..{self.longest // 3}, got {self.shortest}")
        if not 0 <= self.second <= 1 or not self.extents or set(self.extents) - {0, 1, 2}:
            raise ValueError(f"second must lie in 0..1 and extents in 0..2, got {self.second} and {self.extents}")


TINY = PartConfig(planes=("xy",), second=0.6)
"""What `openecad_tiny` reads and writes: an outline on the ground with holes, a boss or a pocket; whole numbers."""
RICH = PartConfig(families=tuple(OUTLINES), extents=(0, 0, 0, 1, 2))
"""All outlines, planes, extent types and second features."""


@dataclass(frozen=True)
class Part:
    """A procedural part."""

    program: Program
    family: str
    """Name of its outline."""
    split: SplitName
    """What it may be used for."""


def sample_part(seed: int, config: PartConfig = TINY) -> Part:
    """The part of a seed: the first of its draws that belongs to the seed's split.

    Raises:
        ValueError: the configuration has no part for this split.

    Example:
        >>> sample_part(7) == sample_part(7)
        True
    """
    split = split_of(seed)
    for attempt in range(ATTEMPTS):
        program, family = _draw(generator(seed, f"cad part {attempt}"), config)
        if owner(program) == split:
            return Part(program, family, split)
    raise ValueError(f"{config} makes too few different parts: none of {ATTEMPTS} belongs to the {split} split")


def owner(program: Program) -> SplitName:
    """The split that a part belongs to, whatever seed it comes from."""
    share = zlib.crc32(emit(program, style="canonical").encode()) % SHARES
    return "test" if share == 0 else "validation" if share == 1 else "train"


def _draw(random: np.random.Generator, config: PartConfig) -> tuple[Program, str]:
    """Any part, and its family."""
    family = str(random.choice(config.families))
    plane = PLANES[str(random.choice(config.planes))]
    width, height, thickness = _sizes(random, family, config)
    outline = OUTLINES[family](width, height, *(float(random.choice(shares)) for shares in LEGS.get(family, ())))
    kind = int(random.choice(config.extents))
    second = None
    if family in FACED and kind == ExtentType.ONE_SIDE and random.random() < config.second:
        second = _second(random, family, width, height, thickness, config.longest)
    # holes and a second feature exclude each other: neither may cut the other in two
    holes = _holes(random, family, width, height) if config.holes and family in HOLED and second is None else []
    first = Extrude(plane, (outline, *holes), Operation.NEW_BODY, kind, *_extents(kind, thickness))
    return Program((first,) if second is None else (first, second)), family


def _extents(kind: int, thickness: float) -> tuple[float, float]:
    """extent_one and extent_two of a given thickness."""
    if kind == ExtentType.SYMMETRIC:
        return thickness / 2, 0.0
    return (thickness / 2, thickness / 2) if kind == ExtentType.TWO_SIDES else (thickness, 0.0)


def _sizes(random: np.random.Generator, family: str, config: PartConfig) -> tuple[float, float, float]:
    """Width, height and thickness, whole and even where halves are needed; the longest is `config.longest`."""
    low, high = config.shortest, config.longest
    size = random.integers(low, high, size=3, endpoint=True)
    size[2] = random.integers(2, high, endpoint=True) if random.random() < 0.4 else random.integers(2, high // 3)
    if family == "disc":
        size[1] = size[0]
    size[random.integers(3)] = high
    if family == "disc":
        size[:2] = max(size[:2]) if size[2] < high else min(size[:2])
    if size.max() < high:
        size[0] = high
    if family in EVEN:
        size[:2] -= size[:2] % 2
    if family in ("slot", "half_round") and size[1] >= size[0]:
        size[:2] = high, max(low, min(size[1], high - 4) // 2 * 2)
    width, height, thickness = (float(value) for value in size)
    return width, height, thickness


def _holes(random: np.random.Generator, family: str, width: float, height: float) -> list[Loop]:
    """No hole, one in the middle, a row of two or three, or one at every corner."""
    middle = (width // 2, height // 2)
    room = min(middle)
    pattern = str(random.choice(["none", "one", "row", "corners"]))
    if pattern == "none" or room < 2:
        return []
    if pattern == "one" or family == "disc":
        return [circle(middle, _whole(random, 1, room - 1))]
    radius = _whole(random, 1, max(1, min(room // 2, 3)))
    inset = radius + 1 + (height // 2 if family in ("slot", "half_round", "hexagon") else family == "rounded")
    if pattern == "row" or family in ("slot", "half_round", "hexagon"):
        left = max(inset, radius + 1)
        if width - 2 * left < 2 * radius + 1:
            return []
        spots = [(left, middle[1]), (width - left, middle[1])]
    else:
        if min(width, height) - 2 * inset < 2 * radius + 1:
            return []
        spots = [(x, y) for x in (inset, width - inset) for y in (inset, height - inset)]
    return [circle(spot, radius) for spot in spots]


def _second(
    random: np.random.Generator, family: str, width: float, height: float, thickness: float, longest: int
) -> Extrude | None:
    """A boss or a pocket on the far face; None where there is no room."""
    pocket = bool(random.random() < 0.5)
    room = min(width, height) // 2 - 2
    space = thickness - 1 if pocket else longest - thickness
    if room < 1 or space < 1:
        return None
    round_one = random.random() < 0.5 or family == "disc"
    half = [_whole(random, 1, room) for _ in range(1 if round_one else 2)]
    # from the iso view at least half of a pocket's floor shows when it is no deeper than half its shorter side
    depth = _whole(random, 1, min(space, min(half) if pocket else 12))
    centre: Vec2 = (width // 2, height // 2)
    loop = circle(centre, half[0]) if round_one else _around(centre, *half)
    plane = RelativePlane(0, (0.0, 0.0), "extent_one")
    operation = Operation.CUT if pocket else Operation.JOIN
    return Extrude(plane, (loop,), operation, ExtentType.ONE_SIDE, -depth if pocket else depth)


def _whole(random: np.random.Generator, low: float, high: float) -> float:
    """A whole number in low..high, both ends included."""
    return float(random.integers(int(low), int(high), endpoint=True))


def _around(centre: Vec2, half_width: float, half_height: float) -> Loop:
    """A rectangle around a point."""
    curves = OUTLINES["plate"](2 * half_width, 2 * half_height).curves

    def moved(point: Vec2) -> Vec2:
        return point[0] + centre[0] - half_width, point[1] + centre[1] - half_height

    return Loop(tuple(replace(c, start=moved(c.start), end=moved(c.end)) for c in curves if not isinstance(c, Circle)))
