"""Which two pictures a model sees: a first look at half of each side, and the full one on request.

Half of each side is a quarter of the pixels and, after the processor's rounding to multiples of 28, about a quarter of
the visual tokens. The second picture is the original, never an enlarged thumbnail.
Sizes are (width, height) in pixels.
Source: VisionThink (Yang et al. 2025, arXiv:2507.13348), section 3.1, and the published data and evaluation code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from PIL import Image

Size = tuple[int, int]

FACTOR = 28
"""Side of one visual token of Qwen2.5-VL in pixels: two patches of 14."""
MIN_PIXELS, MAX_PIXELS = 56 * 56, 12_845_056
"""Limits of the published image processor."""
MOST_STRETCHED = 200
"""Largest ratio of the sides that the processor takes."""


@dataclass(frozen=True)
class TokenGrid:
    """What the image processor makes of a picture."""

    size: Size
    """Pixels after rounding."""
    factor: int = FACTOR
    """Side of a visual token in pixels."""

    @property
    def tokens(self) -> int:
        """Visual tokens after merging 2 x 2 patches."""
        return self.size[0] * self.size[1] // self.factor**2

    @property
    def patches(self) -> tuple[int, int]:
        """Rows and columns of patches before merging."""
        return self.size[1] * 2 // self.factor, self.size[0] * 2 // self.factor


def token_grid(
    width: int, height: int, *, min_pixels: int = MIN_PIXELS, max_pixels: int = MAX_PIXELS, factor: int = FACTOR
) -> TokenGrid:
    """Size and visual tokens of a picture after Qwen2.5-VL's image processor.

    Both sides become multiples of `factor`, the side of a visual token (halves to even); a picture beyond a pixel limit
    is first scaled to it.

    Raises:
        ValueError: an empty picture, or one side is more than 200 times the other.

    Example:
        >>> token_grid(2048, 1024).tokens, token_grid(1024, 512).tokens
        (2701, 666)
    """
    if width < 1 or height < 1:
        raise ValueError(f"a picture needs at least one pixel per side, got {width} x {height}")
    if max(width, height) > MOST_STRETCHED * min(width, height):
        raise ValueError(f"one side is more than {MOST_STRETCHED} times the other in {width} x {height}; crop it")
    sides = [round(side / factor) * factor for side in (width, height)]
    area = sides[0] * sides[1]
    if area > max_pixels:
        shrink = math.sqrt(width * height / max_pixels)
        sides = [max(factor, math.floor(side / shrink / factor) * factor) for side in (width, height)]
    elif area < min_pixels:
        grow = math.sqrt(min_pixels / (width * height))
        sides = [math.ceil(side * grow / factor) * factor for side in (width, height)]
    return TokenGrid((sides[0], sides[1]), factor)


@dataclass(frozen=True, kw_only=True)
class ResolutionPolicy:
    """How the two pictures come from one; `evaluation()` and `training()` are the published settings."""

    side_factor: int = 2
    """The first look has 1 / side_factor of each side."""
    resample: Literal["lanczos", "bicubic", "bilinear"] = "lanczos"
    """Filter of all resizing."""
    min_side: int = FACTOR
    """Least pixels of a side."""
    below_min_side: Literal["enlarge", "reject"] = "enlarge"
    """What happens to a smaller one: enlarge the picture until it fits, or refuse it."""
    min_pixels: int | None = None
    """Smaller originals are enlarged first; None: never."""
    max_pixels: int | None = None
    """Larger originals are shrunk first; None: never."""
    full: Literal["original", "multiple"] = "original"
    """The second picture: the original, or the original resized to exactly side_factor times the first look."""

    def __post_init__(self) -> None:
        if self.side_factor < 1 or self.min_side < 1:
            raise ValueError(f"side_factor and min_side must be at least 1, got {self.side_factor}, {self.min_side}")

    @classmethod
    def evaluation(cls) -> ResolutionPolicy:
        """As the published evaluation client: no pixel limits, the original on request."""
        return cls()

    @classmethod
    def training(cls) -> ResolutionPolicy:
        """As the published data loader: 512 x 512 to 2,048 x 2,048 pixels, even sides, small pictures refused."""
        return cls(below_min_side="reject", min_pixels=512**2, max_pixels=2048**2, full="multiple")

    def sizes(self, width: int, height: int, target: Size | None = None) -> tuple[Size, Size]:
        """Sizes of the first look and of the full picture.

        Args:
            width, height: Of the original.
            target: Prescribed size of the first look, as some training rows carry it; the full picture is then
                side_factor times as large and pixel limits do not apply.

        Raises:
            ValueError: a side is below `min_side` and the policy refuses such pictures.
        """
        if target is not None:
            low = target
        else:
            width, height = self._limited(width, height)
            low = (max(1, width // self.side_factor), max(1, height // self.side_factor))
        if target is not None or self.full == "multiple":
            return self._checked(low), self._checked((low[0] * self.side_factor, low[1] * self.side_factor))
        return self._checked(low), self._checked((width, height))

    def pair(self, image: Image.Image, target: Size | None = None) -> tuple[Image.Image, Image.Image]:
        """The first look and the full picture, RGB.

        The full one comes from the original pixels; the first look passes through the pixel limits, as published.
        """
        image = image.convert("RGB")
        low, full = self.sizes(*image.size, target)
        limited = image if target is not None else self._resized(image, self._limited(*image.size))
        return self._resized(limited, low), self._resized(image, full)

    def saving(self, width: int, height: int) -> float:
        """Share of the visual tokens that the first look saves; 0 or less at the floor of small pictures."""
        low, full = self.sizes(width, height)
        return 1 - token_grid(*low).tokens / token_grid(*full).tokens

    def _limited(self, width: int, height: int) -> Size:
        area = width * height
        scale = 1.0
        if self.max_pixels is not None and area > self.max_pixels:
            scale = math.sqrt(self.max_pixels / area)
        elif self.min_pixels is not None and area < self.min_pixels:
            scale = math.sqrt(self.min_pixels / area)
        return (width, height) if scale == 1.0 else (int(width * scale), int(height * scale))

    def _checked(self, size: Size) -> Size:
        width, height = size
        if min(size) >= self.min_side:
            return size
        if self.below_min_side == "reject":
            raise ValueError(f"a side of {width} x {height} is below {self.min_side} pixels; use a larger picture")
        scale = max(self.min_side / width, self.min_side / height)
        return int(width * scale), int(height * scale)

    def _resized(self, image: Image.Image, size: Size) -> Image.Image:
        return image if image.size == size else image.resize(size, getattr(Image.Resampling, self.resample.upper()))
