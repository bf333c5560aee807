"""Video Swin transformer that keeps every frame: patches 4x4 over two frames, stride 1 in time.

Shifted windows over frames, rows and columns; merging is spatial only, so T frames of H x W pixels become T maps of
ceil(H / cell) x ceil(W / cell) places, with cells of 32 pixels behind four stages.
Source: Video Swin (Liu et al. 2021, arXiv:2106.13230) as VIOLET (arXiv:2111.12681) uses it.
Deviation: windows that reach beyond the border leave the empty places out of the softmax; the published code lets
them take part as zeros. At multiples of 224 pixels and up to 8 frames there are none.
Dims: B batch, T frames, H W pixels or places, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from mm.encoders.evilm.config import PATCH, PATCH_FRAMES, Swin3DConfig
from mm.kernels import shifted_window_attention


class PatchEmbedding(nn.Module):
    """Patches of two neighbouring frames -> tokens; as many frames come out as went in."""

    def __init__(self, width: int, temporal_pad: str) -> None:
        super().__init__()
        self.temporal_pad = temporal_pad
        self.proj = nn.Conv3d(3, width, (PATCH_FRAMES, PATCH, PATCH), stride=(1, PATCH, PATCH))
        self.norm = nn.LayerNorm(width)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, T, 3, H, W) -> (B, T, ceil(H / 4), ceil(W / 4), C)."""
        x = F.pad(frames, (0, -frames.shape[-1] % PATCH, 0, -frames.shape[-2] % PATCH))
        after = x[:, -1:] if self.temporal_pad == "replicate" else torch.zeros_like(x[:, -1:])
        x = rearrange(torch.cat([x, after], 1), "b t c h w -> b c t h w")
        return self.norm(rearrange(self.proj(x), "b c t h w -> b t h w c"))


class WindowAttention(nn.Module):
    """Attention inside shifted windows with a relative-position table."""

    def __init__(self, width: int, num_heads: int, window: tuple[int, int, int], shifted: bool) -> None:
        super().__init__()
        self.num_heads, self.window = num_heads, window
        frames, rows, columns = (side // 2 if shifted else 0 for side in window)
        self.shift = frames, rows, columns
        places = (2 * window[0] - 1) * (2 * window[1] - 1) * (2 * window[2] - 1)
        self.table = nn.Parameter(0.02 * torch.randn(places, num_heads))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, W, C) -> the same shape."""
        mixed = shifted_window_attention(
            self.qkv(x), num_heads=self.num_heads, window=self.window, shift=self.shift, table=self.table
        )
        return self.proj(mixed)


class SwinBlock(nn.Module):
    """Pre-norm window attention and feed-forward, each with stochastic depth."""

    def __init__(self, width: int, heads: int, window: tuple[int, int, int], shifted: bool, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, window, shifted)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, W, C) -> the same shape."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.fc2(F.gelu(self.fc1(self.norm2(x)))))


class PatchMerging(nn.Module):
    """Two by two places of one frame -> one place of twice the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, W, C) -> (B, T, ceil(H / 2), ceil(W / 2), 2 C)."""
        x = F.pad(x, (0, 0, 0, x.shape[3] % 2, 0, x.shape[2] % 2))
        x = rearrange(x, "b t (h p) (w q) c -> b t h w (q p c)", p=2, q=2)
        return self.reduction(self.norm(x))


class Swin3D(nn.Module):
    """The trunk: stages of blocks (four in the published sizes) with merging between them and a final norm."""

    def __init__(self, config: Swin3DConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbedding(config.embed_dim, config.temporal_pad)
        rates = torch.linspace(0, config.drop_path, sum(config.depths), device="cpu").tolist()
        self.stages, self.merges = nn.ModuleList(), nn.ModuleList()
        for number, (depth, heads) in enumerate(zip(config.depths, config.num_heads, strict=True)):
            width = config.embed_dim << number
            blocks = [SwinBlock(width, heads, config.window, bool(i % 2), rates.pop(0)) for i in range(depth)]
            self.stages.append(nn.Sequential(*blocks))
            self.merges.append(PatchMerging(width) if number < len(config.depths) - 1 else nn.Identity())
        self.norm = nn.LayerNorm(config.out_width)

    def forward(self, frames: Tensor, keep: Tensor | None = None, token: Tensor | None = None) -> Tensor:
        """Features of every frame.

        Args:
            frames: Normalised, (B, T, 3, H, W); any T, H, W.
            keep: With `token`: True where a patch stays, (B, T, ceil(H / 4), ceil(W / 4)) bool.
            token: Takes the place of the other patches, (embed_dim).

        Returns:
            (B, T, ceil(H / cell), ceil(W / cell), out_width).
        """
        x = self.patch_embed(frames)
        if token is not None and keep is not None:
            x = torch.where(keep[..., None], x, token.to(x.dtype))
        for stage, merge in zip(self.stages, self.merges, strict=True):
            x = merge(stage(x))
        return self.norm(x)
