"""Neighbouring patches become one token, so that the token rate falls with K.

The grid is flattened time-major; a token of K = 2 covers two neighbours in frequency, one of K = 4 a block of
two by two.
Dims: B segments, T patches along time, F along frequency, D width, K patches per token.
Source: paper section III-A says "adjacent"; the released code settles which.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor

_PATTERNS = {
    1: ("b (t f) d -> b (t f) d", {}),
    2: ("b (t f k) d -> b (t f) (k d)", {"k": 2}),
    4: ("b (t i f j) d -> b (t f) (i j d)", {"i": 2, "j": 2}),
}


def stack_patches(patches: Tensor, stack: int, grid: tuple[int, int]) -> Tensor:
    """Concatenate the channels of K neighbouring patches.

    Args:
        patches: Features without class slot, time-major, (B, T*F, D).
        stack: Patches per token (K): 1, 2 or 4.
        grid: (T, F).

    Returns:
        (B, T*F/K, K*D), time-major.
    """
    pattern, sizes = _PATTERNS[stack]
    time, _ = grid
    return rearrange(patches, pattern, t=time // sizes.get("i", 1), **sizes)
