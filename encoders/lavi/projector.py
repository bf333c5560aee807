"""From vision features to the visual tokens that the conditioners read.

    V = W2 gelu(W1 norm(F)) + E_tile[tile] + E_frame[frame] + E_image[image]

computed once per image set. The embeddings start at zero; without them the set of visual tokens has no tile layout and
no temporal order, because attention over it does not see an order.
Dims: B batch, M visual tokens, T tiles (or frames), D vision width, C conditioner width.
Deviation: the paper's projector is unknown; this is the two-layer projector that its baselines use, with a norm in
front.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from mm.encoders.lavi.conditioners.base import scaled_normal_
from mm.encoders.lavi.config import LaviConfig


class VisualProjector(nn.Module):
    """Norm, two linear layers and the position embeddings of one stack of features."""

    def __init__(self, config: LaviConfig, vision_width: int) -> None:
        super().__init__()
        self.vision_width = vision_width
        self.norm = nn.LayerNorm(vision_width)
        self.fc1 = nn.Linear(vision_width, config.width)
        self.fc2 = nn.Linear(config.width, config.width)
        self.tile_emb = nn.Parameter(torch.zeros(config.num_tiles, config.width))
        self.frame_emb = nn.Parameter(torch.zeros(config.num_frames, config.width))
        self.image_emb = nn.Parameter(torch.zeros(config.num_images, config.width))
        for layer in (self.fc1, self.fc2):
            scaled_normal_(layer.weight, layer.in_features)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        features: Tensor,
        tile_ids: Tensor | None = None,
        frame_ids: Tensor | None = None,
        image_ids: Tensor | None = None,
    ) -> Tensor:
        """Project (B, M, D) features to (B, M, C) visual tokens; each id tensor is (B, M) integer or None."""
        features = features.to(self.norm.weight.dtype)
        tokens = self.fc2(F.gelu(self.fc1(self.norm(features))))
        for name, ids, table in (
            ("tile", tile_ids, self.tile_emb),
            ("frame", frame_ids, self.frame_emb),
            ("image", image_ids, self.image_emb),
        ):
            if ids is not None:
                check_ids(name, ids, len(table))
                tokens = tokens + F.embedding(ids, table)
        return tokens


class AlignedProjector(nn.Module):
    """One projector per modulated block, each reading its own ViT layer (`feature_mode="aligned"`)."""

    def __init__(self, config: LaviConfig) -> None:
        super().__init__()
        self.levels = nn.ModuleList(VisualProjector(config, config.vision_width) for _ in config.vision_feature_layers)

    def forward(self, features: Sequence[Tensor], **ids: Tensor | None) -> list[Tensor]:
        """Project each level of features, (B, M, D) each, to (B, M, C)."""
        return [project(level, **ids) for project, level in zip(self.levels, features, strict=True)]


def build_projector(config: LaviConfig, num_modulated: int) -> VisualProjector | AlignedProjector:
    """The projector that a config asks for.

    Raises:
        ValueError: aligned features whose number differs from the number of modulated blocks.
    """
    levels = len(config.vision_feature_layers)
    if config.feature_mode == "dense":
        return VisualProjector(config, levels * config.vision_width)
    if levels != num_modulated:
        raise ValueError(
            f"feature_mode='aligned' pairs ViT layers with modulated blocks, but vision_feature_layers lists {levels} "
            f"and layers chooses {num_modulated}; list as many, or use feature_mode='dense'"
        )
    return AlignedProjector(config)


def check_ids(name: str, ids: Tensor, rows: int) -> None:
    """Refuse ids outside an embedding table; on an accelerator the check runs there, without waiting for it.

    Raises:
        ValueError: an id is negative or not smaller than `rows`.
    """
    if ids.is_meta or torch.compiler.is_compiling():
        return
    valid = ((ids >= 0) & (ids < rows)).all()
    if ids.device.type != "cpu":
        torch._assert_async(valid)
    elif not valid:
        raise ValueError(
            f"{name}_ids must lie in 0..{rows - 1}, found {int(ids.min())}..{int(ids.max())}; raise num_{name}s of "
            "LaviConfig for more"
        )


def pool_tiles(features: Tensor, mask: Tensor | None, grid: tuple[int, int], size: int) -> tuple[Tensor, Tensor | None]:
    """Average every tile of patch tokens to size x size tokens, counting only real ones.

    Args:
        features: Tokens tile after tile, row by row inside a tile, (B, T*h*w, D).
        mask: True where a token is real, (B, T*h*w) bool, or None when all are.
        grid: (h, w) of one tile.
        size: Side of the pooled tile.

    Returns:
        Pooled features (B, T*size*size, D) and their mask (a pooled token is real if any of its parts is).
    """
    height, width = grid
    batch = features.shape[0]
    images = rearrange(features, "b (t h w) d -> (b t) d h w", h=height, w=width)
    if mask is None:
        pooled = F.adaptive_avg_pool2d(images, size)
        return rearrange(pooled, "(b t) d h w -> b (t h w) d", b=batch), None
    weight = rearrange(mask, "b (t h w) -> (b t) 1 h w", h=height, w=width).to(features.dtype)
    total = F.adaptive_avg_pool2d(images * weight, size)
    share = F.adaptive_avg_pool2d(weight, size)
    pooled = total / share.clamp_min(torch.finfo(share.dtype).tiny)
    return (
        rearrange(pooled, "(b t) d h w -> b (t h w) d", b=batch),
        rearrange(share > 0, "(b t) 1 h w -> b (t h w)", b=batch),
    )


def pool_ids(ids: Tensor | None, grid: tuple[int, int], size: int) -> Tensor | None:
    """Ids of pooled tokens: those of their tile (ids are constant inside a tile), (B, T*h*w) -> (B, T*size*size)."""
    if ids is None:
        return None
    first = rearrange(ids, "b (t n) -> b t n", n=grid[0] * grid[1])[..., :1]
    return rearrange(first.expand(-1, -1, size * size), "b t n -> b (t n)")
