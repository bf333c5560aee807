"""Ways to say the same thing, one of which training never hears.

Every list of forms in this package ends with the form that belongs to the paraphrase test: `phrasing="seen"` draws
from the others, `"held_out"` takes only the last, so understanding can be told from recognising a sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

Phrasing = Literal["seen", "held_out", "all"]


def choose(rng: np.random.Generator, forms: Sequence[str], phrasing: Phrasing) -> str:
    """One of `forms`; a list of one form belongs to both sides.

    Raises:
        ValueError: unknown `phrasing`.
    """
    if phrasing not in get_args(Phrasing):
        raise ValueError(f"phrasing must be one of {', '.join(get_args(Phrasing))}, got {phrasing!r}")
    if len(forms) == 1:
        return forms[0]
    allowed = {"seen": forms[:-1], "held_out": forms[-1:], "all": forms}[phrasing]
    return allowed[int(rng.integers(len(allowed)))]


def with_article(name: str) -> str:
    """`a` or `an` in front of a name."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def listed(names: Sequence[str]) -> str:
    """Names joined by commas and a final `and`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
