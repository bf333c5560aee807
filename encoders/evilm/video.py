"""Frames -> video tokens: normalise, hide cells, trunk, projection, a class token per frame, positions.

Source: VIOLET (arXiv:2111.12681) and VIOLETv2 (arXiv:2209.01540).
Deviation: position tables are resized to the grid at hand; the ancestors take their first rows (`positions="slice"`).
Dims: B batch, T frames, h w cells (32 x 32 pixels behind four stages), D width, C8 channels of the trunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from mm.encoders.evilm.bert import EPS
from mm.encoders.evilm.config import PATCH, EViLMConfig
from mm.encoders.evilm.swin3d import Swin3D


class VideoEncoder(nn.Module):
    """Tokens of a clip, one class token and h * w places per frame."""

    def __init__(self, config: EViLMConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.trunk = Swin3D(config.video)
        same = config.video.out_width == width
        self.proj = nn.Identity() if same else nn.Linear(config.video.out_width, width)
        self.frame_cls = nn.Parameter(config.init_std * torch.randn(width))
        self.places = nn.Parameter(config.init_std * torch.randn(1 + config.position_grid**2, width))
        self.frames = nn.Parameter(config.init_std * torch.randn(config.frame_table, width))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.mask_token = nn.Parameter(torch.zeros(config.video.embed_dim)) if config.mask_fill == "learned" else None
        colours = torch.tensor([config.mean, config.std])[..., None, None]  # (2, 3, 1, 1)
        self.register_buffer("colours", colours, persistent=False)

    def forward(self, frames: Tensor, keep: Tensor | None = None) -> tuple[Tensor, tuple[int, int, int]]:
        """Video tokens and their grid.

        Args:
            frames: uint8, or values in [0, 1], (B, T, 3, H, W); any T, H, W.
            keep: True where a cell is visible, (B, T, h, w) bool, h = ceil(H / cell).

        Returns:
            Tokens (B, T * (1 + h * w), D) and (T, h, w).

        Raises:
            ValueError: frames or mask of another shape.
        """
        features = self.proj(self.features(frames, keep))  # (B, T, h, w, D)
        batch, count, *grid = features.shape[:-1]
        cls = repeat(self.frame_cls, "d -> b t 1 d", b=batch, t=count)
        x = torch.cat([cls, rearrange(features, "b t h w d -> b t (h w) d")], 2)
        x = self.norm(x + self._places(*grid) + self._frames(count)[:, None])
        return rearrange(x, "b t n d -> b (t n) d"), (count, *grid)

    def features(self, frames: Tensor, keep: Tensor | None = None) -> Tensor:
        """Output of the trunk, (B, T, h, w, C8); arguments as in `forward`."""
        if frames.ndim != 5 or frames.shape[2] != 3 or not frames.numel():
            raise ValueError(f"frames must be (B, T, 3, H, W) with no side empty, got {tuple(frames.shape)}")
        if frames.dtype == torch.uint8:
            frames = frames.to(self.frame_cls.dtype) / 255
        if keep is None:
            return self.trunk(self._normalise(frames))
        batch, count, _, height, width = frames.shape
        cell = self.config.video.cell
        expected = (batch, count, -(-height // cell), -(-width // cell))
        if keep.shape != expected or keep.dtype != torch.bool:
            raise ValueError(f"the mask must be bool {expected}, got {keep.dtype} {tuple(keep.shape)}")
        pixels = _spread(keep, cell)[..., :height, :width][:, :, None]
        if self.config.mask_fill == "black":
            return self.trunk(self._normalise(torch.where(pixels, frames, 0)))
        hidden = torch.where(pixels, self._normalise(frames), 0)
        patches = _spread(keep, cell // PATCH)[..., : -(-height // PATCH), : -(-width // PATCH)]
        return self.trunk(hidden, patches, self.mask_token)

    def _normalise(self, frames: Tensor) -> Tensor:
        mean, std = self.colours  # type: ignore[misc]
        return ((frames - mean) / std).to(self.frame_cls.dtype)

    def _places(self, height: int, width: int) -> Tensor:
        """(1 + h * w, D)."""
        side = self.config.position_grid
        if self.config.positions == "slice":
            if height * width > side**2:
                raise ValueError(f"{height} x {width} places, the table has {side**2}; use positions='interpolate'")
            return self.places[: 1 + height * width]
        if (height, width) == (side, side):
            return self.places
        table = rearrange(self.places[1:], "(h w) d -> 1 d h w", h=side)
        table = F.interpolate(table, (height, width), mode="bilinear", align_corners=False)
        return torch.cat([self.places[:1], rearrange(table, "1 d h w -> (h w) d")])

    def _frames(self, count: int) -> Tensor:
        """(T, D): the first rows, or the whole table stretched when there are more frames than rows."""
        rows = len(self.frames)
        if count <= rows:
            return self.frames[:count]
        if self.config.positions == "slice":
            raise ValueError(f"{count} frames, the table has {rows}; take fewer or use positions='interpolate'")
        table = rearrange(self.frames, "t d -> 1 d t")
        return rearrange(F.interpolate(table, count, mode="linear", align_corners=True), "1 d t -> t d")


def _spread(keep: Tensor, times: int) -> Tensor:
    """Each cell of (B, T, h, w) becomes times x times equal entries."""
    return keep.repeat_interleave(times, -1).repeat_interleave(times, -2)
