"""Which questions need the full picture: asked of the model itself, many times at both resolutions.

All attempts right at both: a look at the small picture suffices. Right much more often at full resolution: the question
needs it. Everything else is unclear and left out.
Source: VisionThink (Yang et al. 2025, arXiv:2507.13348), section 4.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

Look = Literal["low", "full"]
Label = Literal["low_suffices", "needs_full", "unclear"]


@dataclass(frozen=True)
class LabelledSample:
    """A sample, how often it was answered correctly, and what follows."""

    sample: Any
    correct_low: int
    correct_full: int
    label: Label


def label_by_rollouts(
    model: Callable[[Any, Look, int], bool], data: Iterable[Any], n: int = 8, margin: int = 6
) -> list[LabelledSample]:
    """Sort questions by whether they need the full picture.

    Args:
        model: `model(sample, look, seed)` answers one sample from the "low" or the "full" picture and says whether the
            answer is right; `seed` counts from 0 to n - 1.
        data: Samples of any kind.
        n: Attempts per resolution.
        margin: Attempts by which full resolution must win.

    Returns:
        One entry per sample, in order; train on the two clear kinds in equal parts.

    Raises:
        ValueError: `margin` is not between 1 and n.

    Example:
        >>> found = label_by_rollouts(lambda sample, look, seed: look == "full", ["tiny print"])
        >>> found[0].label
        'needs_full'
    """
    if not 1 <= margin <= n:
        raise ValueError(f"margin must be between 1 and n={n}, got {margin}")
    labelled = []
    for sample in data:
        low, full = (sum(bool(model(sample, look, seed)) for seed in range(n)) for look in ("low", "full"))
        labelled.append(LabelledSample(sample, low, full, _label(low, full, n, margin)))
    return labelled


def _label(low: int, full: int, n: int, margin: int) -> Label:
    if low == full == n:
        return "low_suffices"
    return "needs_full" if full - low >= margin else "unclear"
