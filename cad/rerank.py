"""Execute, render, compare: candidate programs are built and drawn, and the drawing is held against the picture.

It needs no true program, only the picture that was asked about, so it works on a user's photo as well; what it returns
says how much of the picture the answer explains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mm.cad.data import ANGLE, SIZE
from mm.cad.drawing import render
from mm.cad.drawing.picture import Picture
from mm.cad.errors import ProgramError
from mm.cad.kernel import BuildError, Limits, Solid, build
from mm.cad.model import Candidate
from mm.cad.parser import parse
from mm.cad.program import Program
from mm.cad.seeing import as_seen, drawn

LIMITS = Limits(seconds=5.0, cpu_seconds=5.0)
"""Per candidate."""
LOW_AGREEMENT = 0.75
"""Below it an answer is called uncertain: its drawing leaves too much of the picture unexplained."""


@dataclass(frozen=True)
class Checked:
    """A candidate with what became of it."""

    candidate: Candidate
    program: Program | None
    solid: Solid | None
    agreement: float
    """Likeness of its drawing and the picture, 0..1; 0 if it has none."""
    problem: str = ""
    """Code of the error in its text, or of the one that ended it; "" = none."""

    @property
    def uncertain(self) -> bool:
        """Whether the answer should be given with a warning."""
        return self.agreement < LOW_AGREEMENT


def agreement(one: Picture, other: Picture) -> float:
    """Likeness of two grey pictures of the same size, 0..1.

    Overlap of the silhouettes, times one minus the mean difference of brightness where either shows something. The
    silhouette alone does not see holes.
    """
    a, b = drawn(one), drawn(other)
    either = a | b
    if not either.any():
        return 0.0
    difference = np.abs(one[either].astype(np.float64) - other[either]).mean() / 255
    return float((a & b).sum() / either.sum() * (1 - difference))


def check(candidate: Candidate, seen: Picture, limits: Limits = LIMITS) -> Checked:
    """Build and draw one candidate and compare it with the picture as the model saw it.

    Of an answer that breaks off, or goes wrong, the extrudes before that place count; `problem` says what was wrong.
    """
    program, problem = _read(candidate.text)
    if program is None:
        return Checked(candidate, None, None, 0.0, problem)
    try:
        solid = build(program, kernel="mesh", limits=limits, angle=ANGLE)
    except (BuildError, ProgramError) as error:
        code = error.status if isinstance(error, BuildError) else error.code
        return Checked(candidate, program, None, 0.0, code)
    # the picture is shown at the model's size, where thin and thick lines differ: the nearer drawing counts
    drawings = [as_seen(render(solid, size=size), SIZE) for size in (SIZE, 3 * SIZE)]
    return Checked(candidate, program, solid, max(agreement(drawing, seen) for drawing in drawings), problem)


def _read(text: str) -> tuple[Program | None, str]:
    """The program, or its whole extrudes before the first error, and the code of that error."""
    try:
        return parse(text), ""
    except ProgramError as error:
        try:
            return parse(text, recover=True), error.code
        except ProgramError:
            return None, error.code


def best(candidates: Sequence[Candidate], seen: Picture, limits: Limits = LIMITS) -> Checked:
    """The candidate whose drawing is most like the picture; the earlier one on a tie.

    Equal texts are built once.

    Raises:
        ValueError: no candidate.
    """
    if not candidates:
        raise ValueError("re-ranking needs at least one candidate")
    different = list({candidate.text: candidate for candidate in reversed(candidates)}.values())[::-1]
    return max((check(candidate, seen, limits) for candidate in different), key=lambda found: found.agreement)
