"""The one face that vision transformers of three libraries show to the rest of the toolkit.

A tower reads patch tokens from a chosen hidden state and computes no block beyond it. Layers are counted as in Hugging
Face's `hidden_states`: 0 is the embedding (after a pre-norm, if any), k the output of block k, -1 the last block before
the final norm.
Dims: B pictures, N = h * w patches, P prefix tokens (class, registers), D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mm.vision.activation import activation_of
from mm.vision.config import TowerConfig
from mm.vision.preprocessing import ImagePreprocessing

Blocks = nn.ModuleList | nn.Sequential


@dataclass(frozen=True)
class VisionFeatures:
    """What a tower saw."""

    tokens: Tensor
    """Patch tokens in raster order, (B, N, D); no class or register tokens."""
    cls: Tensor | None
    """Class token of the same layer, (B, D); None for towers without one."""
    grid: tuple[int, int]
    """(h, w) patches."""


class VisionTower(nn.Module, ABC):
    """Base of the wrappers; the library's own module is `.module` and stays as it is.

    Args:
        module: The library's vision transformer.
        config: Of the tower; `config.activation` must agree with the module.
        depth: Blocks in the module.

    Raises:
        ValueError: the layer does not exist, or config and module disagree on the activation.
    """

    module: Any
    """The library's vision transformer, untouched."""
    width: int
    """Channels per token (D)."""
    patch_size: tuple[int, int]
    """(height, width) of a patch, pixels."""
    num_prefix: int
    """Tokens before the patches (P)."""
    has_cls: bool
    """Whether the first prefix token is a class token."""

    def __init__(self, module: Any, config: TowerConfig, depth: int) -> None:
        super().__init__()
        self.module = module
        self.depth = depth
        self.num_blocks = resolve_layer(config.layer, depth)
        activation = activation_of(self.blocks_of(module))
        if config.activation not in (None, activation):
            raise ValueError(
                f"{config.library} {config.name}: config says activation={config.activation!r}, the module has "
                f"{activation!r}; set the config to what the weights were trained with"
            )
        self.config = replace(config, activation=activation)

    @staticmethod
    @abstractmethod
    def blocks_of(module: Any) -> Blocks:
        """The transformer blocks of the library's module, each called as `block(tokens (B, P + N, D), ...)`."""

    @abstractmethod
    def run(self, pixel_values: Tensor) -> Tensor:
        """Hidden state `config.layer`, prefix tokens first, (B, P + N, D)."""

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks that run, first to last."""
        return list(self.blocks_of(self.module))[: self.num_blocks]

    @property
    def preprocessing(self) -> ImagePreprocessing:
        """How pictures must be prepared."""
        return self.config.preprocessing

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the input, pixels."""
        return self.preprocessing.height, self.preprocessing.width

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) patches of one picture."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @property
    def num_tokens(self) -> int:
        """Patches of one picture (N)."""
        return self.grid[0] * self.grid[1]

    def forward(self, pixel_values: Tensor) -> VisionFeatures:
        """Encode pictures.

        Args:
            pixel_values: Preprocessed pictures, (B, 3, H, W), any float dtype; cast to the tower's. B may be 0.

        Raises:
            ValueError: another picture size than `image_size`.
        """
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != (3, *self.image_size):
            raise ValueError(
                f"pixel_values must be (B, 3, {self.image_size[0]}, {self.image_size[1]}) for this tower, got "
                f"{tuple(pixel_values.shape)}; use its preprocessing"
            )
        parameter = next(self.module.parameters())
        if not len(pixel_values):  # attention kernels refuse an empty batch
            tokens = parameter.new_empty(0, self.num_tokens, self.width)
            return VisionFeatures(tokens, tokens.new_empty(0, self.width) if self.has_cls else None, self.grid)
        hidden = self.run(pixel_values.to(parameter.dtype))
        cls = hidden[:, 0] if self.has_cls else None
        return VisionFeatures(hidden[:, self.num_prefix :], cls, self.grid)

    def freeze(self) -> VisionTower:
        """No gradients and, from now on, always evaluation mode (no dropout, no stochastic depth)."""
        self.requires_grad_(False)
        self._frozen = True
        return self.eval()

    def train(self, mode: bool = True) -> VisionTower:
        """Training mode; a frozen tower stays in evaluation mode."""
        return super().train(mode and not getattr(self, "_frozen", False))


def resolve_layer(layer: int, depth: int) -> int:
    """Index into `hidden_states` (depth + 1 entries) -> number of blocks to run.

    Raises:
        ValueError: no such hidden state.

    Example:
        >>> resolve_layer(-2, depth=24), resolve_layer(0, depth=24)
        (23, 0)
    """
    if not -depth - 1 <= layer <= depth:
        raise ValueError(f"layer {layer} does not exist in a tower of {depth} blocks; allowed: {-depth - 1}..{depth}")
    return layer if layer >= 0 else depth + 1 + layer


def as_pair(value: int | Sequence[int]) -> tuple[int, int]:
    """A side or (height, width) -> (height, width)."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


@torch.no_grad()
def check_grid(tower: VisionTower) -> None:
    """Encode one black picture and see that the token count is what `grid` says.

    Raises:
        ValueError: the tower pools or drops tokens, or its input size differs.
    """
    was_training = tower.training
    parameter = next(tower.module.parameters())
    pixels = torch.zeros(1, 3, *tower.image_size, device=parameter.device)
    found = tower.eval()(pixels).tokens.shape[1]
    tower.train(was_training)
    if found != tower.num_tokens:
        raise ValueError(
            f"{tower.config.name}: gives {found} patch tokens, its grid {tower.grid} says {tower.num_tokens}"
        )
