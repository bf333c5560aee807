"""What a model is shown of a picture: all of it, a quarter of its pixels, or what a pruner keeps of its tokens.

A look is visual tokens with their places. The conversation puts them into its sequence itself, so that any reducer can
give the first look and nothing in the model is patched.
Dims: n visual tokens, D width of the language model.
Source: VisionThink (Yang et al. 2025, arXiv:2507.13348); positions as in Qwen2-VL (arXiv:2409.12191), section 2.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from mm.pruning.base import Pruner
from mm.pruning.ragged import unpad_rows
from mm.pruning.visionthink.resolution import ResolutionPolicy


class Look(NamedTuple):
    """One picture as the language model receives it."""

    features: Tensor
    """Visual tokens, (n, D)."""
    axes: Tensor
    """Time, row and column of each token from the start of the picture, (3, n) int64."""
    grid: tuple[int, int, int]
    """Frames, rows and columns of patches of the whole picture, before merging."""
    extent: int
    """Positions that the picture takes up: the longest side of its whole merged grid."""


class Looker(Protocol):
    """A way to look at pictures."""

    def __call__(self, eye: Eye, images: Sequence[Image.Image]) -> list[Look]: ...


class Eye:
    """The vision side of Qwen2-VL or Qwen2.5-VL: pictures in, visual tokens with their places out.

    Args:
        model: `Qwen2VLForConditionalGeneration` or `Qwen2_5_VLForConditionalGeneration`.
        image_processor: Its image processor.

    Raises:
        ValueError: the model's encoder takes pictures of one size only, so that a smaller picture saves nothing.
    """

    def __init__(self, model: nn.Module, image_processor: Any) -> None:
        core: Any = getattr(model, "model", None)
        if not hasattr(getattr(core, "visual", None), "spatial_merge_size"):
            raise ValueError(
                f"{type(model).__name__} encodes every picture at one size, so a first look at fewer pixels "
                "saves nothing; use a model with dynamic resolution such as Qwen2.5-VL, or prune tokens with FlowCut"
            )
        self.core, self.image_processor = core, image_processor
        self.merge = int(core.visual.spatial_merge_size)

    def patches(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """Patches of all pictures (sum of patches, C) and their grids (P, 3)."""
        found = self.image_processor(images=list(images), return_tensors="pt")
        device = next(self.core.parameters()).device
        return found["pixel_values"].to(device), found["image_grid_thw"].to(device)

    def count(self, image: Image.Image) -> int:
        """Visual tokens of a picture, without encoding it."""
        grid = self.image_processor(images=[image], return_tensors="pt")["image_grid_thw"]
        return int(grid.prod()) // self.merge**2

    def see(self, images: Sequence[Image.Image]) -> list[Look]:
        """Every visual token of every picture."""
        pixels, grids = self.patches(images)
        features = self.core.get_image_features(pixels, grids, return_dict=True).pooler_output
        return [self.placed(part, grid) for part, grid in zip(features, grids.tolist(), strict=True)]

    def placed(self, features: Tensor, grid: Sequence[int], kept: Tensor | None = None) -> Look:
        """Visual tokens (n, D) of one picture at their places; `kept` (n) names them where some are left out."""
        frames, rows, columns = grid
        shape = (frames, rows // self.merge, columns // self.merge)
        axes = torch.stack(torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")).flatten(1)
        axes = axes.to(features.device)
        return Look(features, axes if kept is None else axes[:, kept], (frames, rows, columns), max(shape))


@dataclass(frozen=True)
class FullLook:
    """All of the picture."""

    policy: ResolutionPolicy

    def __call__(self, eye: Eye, images: Sequence[Image.Image]) -> list[Look]:
        return eye.see([self.policy.pair(image)[1] for image in images])


@dataclass(frozen=True)
class HalfLook:
    """Half of each side: a quarter of the pixels."""

    policy: ResolutionPolicy

    def __call__(self, eye: Eye, images: Sequence[Image.Image]) -> list[Look]:
        return eye.see([self.policy.pair(image)[0] for image in images])


@dataclass(frozen=True)
class PrunedLook:
    """The visual tokens that a pruner keeps of the full picture, each at its own place."""

    pruner: Pruner
    policy: ResolutionPolicy

    def __call__(self, eye: Eye, images: Sequence[Image.Image]) -> list[Look]:
        pixels, grids = eye.patches([self.policy.pair(image)[1] for image in images])
        targets = self.pruner.view_targets(1, "plain") * len(grids)  # nothing is cut later, inside the language model
        found = self.pruner.encode(eye.core.visual, pixels, image_grid_thw=grids, targets=targets)
        features, kept = unpad_rows(found.tokens, found.keep), unpad_rows(found.keep_indices, found.keep)
        return [eye.placed(*row) for row in zip(features, grids.tolist(), kept, strict=True)]


def open_looker(first_look: str | Pruner | Looker, policy: ResolutionPolicy) -> Looker:
    """ "half", "full", a pruner, or a looker itself.

    Raises:
        ValueError: an unknown name.
    """
    if isinstance(first_look, Pruner):
        return PrunedLook(first_look, policy)
    if isinstance(first_look, str):
        looks: dict[str, Looker] = {"half": HalfLook(policy), "full": FullLook(policy)}
        if first_look not in looks:
            raise ValueError(f"unknown first_look {first_look!r}; choose 'half', 'full', or pass a pruner")
        return looks[first_look]
    return first_look
