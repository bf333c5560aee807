"""The vision encoder: MONAI's SwinTransformer with its own keys, on this toolkit's window attention.

Dims: B volumes, H W D voxels, C channels; outputs 0 .. 4 have C 2^i channels on a grid halved i + 1 times.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from mm.extras import require
from mm.kernels.monai_swin import replace_window_attention
from mm.medical.velvet.config import VisionConfig

PURPOSE = "The VELVET-Med vision encoder"


@dataclass(frozen=True)
class VolumeFeatures:
    """What the three levels look at; each is normalised over its channels without parameters."""

    report: Tensor
    """Last output, (B, 16 C, h, w, d)."""
    sentence: Tensor
    """Third stage, (B, 8 C, 2 h, 2 w, 2 d) up to rounding."""
    word: Tensor
    """Second stage, (B, 4 C, ...)."""

    def regions(self, level: str) -> Tensor:
        """One level as a list of regions, (B, S, C)."""
        return rearrange(getattr(self, level), "b c h w d -> b (h w d) c")


class VisionEncoder(nn.Module):
    """3-D Swin Transformer; `encoder.swin` is a MONAI `SwinTransformer` with the keys it always had.

    Args:
        config: Sizes.

    Raises:
        ImportError: MONAI is missing.

    Source: paper, vision encoder; MONAI `SwinTransformer` (Hatamizadeh et al. 2022, arXiv:2201.01266).
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        swin = build_swin(config)
        if config.fused:
            replace_window_attention(swin)
        self.swin = swin

    def forward(self, volume: Tensor) -> list[Tensor]:
        """Five normalised outputs of a volume (B, channels, H, W, D)."""
        if volume.ndim != 5 or volume.shape[1] != self.config.in_channels:
            raise ValueError(
                f"volume must be (B, {self.config.in_channels}, H, W, D), got {tuple(volume.shape)}; a single scan "
                "needs volume[None, None]"
            )
        return self.swin(volume.to(next(self.parameters()).dtype))  # type: ignore[no-any-return]

    def features(self, volume: Tensor) -> VolumeFeatures:
        """What the three text levels are compared with."""
        outputs = self(volume)
        return VolumeFeatures(report=outputs[-1], sentence=outputs[-2], word=outputs[-3])


def build_swin(config: VisionConfig) -> Any:
    """A plain MONAI `SwinTransformer` of these sizes; patch merging of MONAI 1.4 where the config says so."""
    nets = require("monai.networks.nets.swin_unetr", extra="medical", purpose=PURPOSE)
    return nets.SwinTransformer(
        in_chans=config.in_channels,
        embed_dim=config.embed_dim,
        window_size=(config.window_size,) * 3,
        patch_size=(config.patch_size,) * 3,
        depths=config.depths,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        qkv_bias=True,
        use_checkpoint=config.checkpointing,
        spatial_dims=3,
        downsample=legacy_merging() if config.merging == "legacy" else "merging",
    )


@cache
def legacy_merging() -> type[nn.Module]:
    """Patch merging as MONAI did it up to 1.4: corners 010 and 001 twice, 110 and 011 never.

    Same parameters, other outputs: weights trained before 1.5 need it. Only volumes are concerned; 2-D was right.
    """
    nets = require("monai.networks.nets.swin_unetr", extra="medical", purpose=PURPOSE)
    corners = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))

    class LegacyPatchMerging(nets.PatchMergingV2):  # type: ignore[name-defined, misc]
        def forward(self, x: Tensor) -> Tensor:
            _, depth, height, width, _ = x.shape  # (B, D, H, W, C)
            x = nn.functional.pad(x, (0, 0, 0, width % 2, 0, height % 2, 0, depth % 2))
            x = torch.cat([x[:, i::2, j::2, k::2] for i, j, k in corners], dim=-1)
            return self.reduction(self.norm(x))  # type: ignore[no-any-return]

    return LegacyPatchMerging
