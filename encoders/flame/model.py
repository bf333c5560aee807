"""The image encoder: a vision transformer, one head for all facets, and the mean over patches.

    v = norm(mean over patches p of head(H_p)),   head = Linear, GELU, Linear, LayerNorm

The head works on every patch before the mean and does not commute with it. The class token takes part in attention
only; the transformer's own final norm and projection are not used.
Dims: B pictures, N patches, W width of the tower, D width of the text embeddings.
Source: FLAME (Cao et al. 2024, arXiv:2411.11927) and its published code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mm.checkpoint import Pretrained
from mm.encoders.flame.config import FlameVisionConfig
from mm.vision import ImageProcessor, VisionTower, build_tower

LARGEST_SCALE = 100.0
"""The scale exp(logit_scale) stays in 1..100."""


class FlameImageEncoder(Pretrained, nn.Module):
    """Pictures to unit vectors in the space of the frozen text tower.

    Args:
        config: Tower, head and the text tower it belongs to.
        tower: Used instead of a random one.
    """

    config_class = FlameVisionConfig
    config: FlameVisionConfig

    def __init__(self, config: FlameVisionConfig, *, tower: VisionTower | None = None) -> None:
        super().__init__()
        self.config = config
        self.tower = tower if tower is not None else build_tower(config.tower)
        self.head = head(self.tower.width, config.head_hidden, config.text_width, config.mlp_depth)
        self.logit_scale = nn.Parameter(torch.tensor(config.init_logit_scale))
        bias = config.init_logit_bias
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(bias))
        for parameter in unused(self.tower):
            parameter.requires_grad_(False)

    def tokens(self, pixel_values: Tensor) -> Tensor:
        """Output of the last block, class token (if the tower has one) first, (B, 1 + N, W)."""
        seen = self.tower(pixel_values)
        return seen.tokens if seen.cls is None else torch.cat([seen.cls[:, None], seen.tokens], dim=1)

    def patches(self, pixel_values: Tensor) -> Tensor:
        """What the head says of every patch, in raster order, (B, N, D); lies in the language model's own space."""
        return self.head(self.tower(pixel_values).tokens)  # type: ignore[no-any-return]

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Embed pictures.

        Args:
            pixel_values: Preprocessed pictures (`self.processor`), (B, 3, H, W).

        Returns:
            Unit vectors, (B, D); normalised in float32, dtype of the model.
        """
        pooled = self.patches(pixel_values).mean(dim=1)
        return F.normalize(pooled.float(), dim=-1).to(pooled.dtype)

    def visual_only(self, pixel_values: Tensor) -> Tensor:
        """Mean of the patch tokens without the head, (B, W): the features of a linear probe."""
        return self.tower(pixel_values).tokens.mean(dim=1)  # type: ignore[no-any-return]

    @torch.no_grad()
    def clamp_scale(self) -> None:
        """Keep the scale of the logits in 1..100; called after every optimiser step."""
        self.logit_scale.clamp_(0.0, float(torch.tensor(LARGEST_SCALE).log()))

    @property
    def processor(self) -> ImageProcessor:
        """Pictures -> `pixel_values`."""
        return ImageProcessor(self.tower.preprocessing)

    @property
    def width(self) -> int:
        """Channels of an embedding (D)."""
        return self.config.text_width

    def preprocessing(self) -> dict[str, Any]:
        return self.tower.preprocessing.to_dict()


def head(width: int, hidden: int, text_width: int, depth: int) -> nn.Sequential:
    """Linear to `hidden`, then depth - 1 times GELU and Linear to `text_width`, LayerNorm at the end."""
    if depth == 1:
        return nn.Sequential(nn.Linear(width, text_width), nn.LayerNorm(text_width))
    layers: list[nn.Module] = [nn.Linear(width, hidden)]
    for _ in range(depth - 1):
        layers += [nn.GELU(), nn.Linear(hidden, text_width)]
    return nn.Sequential(*layers, nn.LayerNorm(text_width))


def unused(tower: VisionTower) -> list[nn.Parameter]:
    """Parameters that the tower carries and that no output depends on: final norm, projection, classifier."""
    names = ("ln_post", "proj", "norm", "fc_norm", "head", "attn_pool")
    return [
        parameter
        for name, parameter in tower.module.named_parameters()
        if name.partition(".")[0] in names and not tower.config.final_norm
    ]
