"""Pretraining of the feature extractor: most patches are hidden, a small decoder paints them.

    L = mean over hidden patches of |mel patch - painted|^2

Dims: B segments, T frames, F mel bins, N patches, M visible patches, D width, P = 256 values of a patch.
Source: AudioMAE (Huang et al. 2022, arXiv:2207.06405), sections 3.1 to 3.3. Deviation: the decoder attends globally,
not in local windows; at this size a segment has few patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mm.codecs.semanticodec.audiomae import position_table
from mm.codecs.semanticodec.config import PATCH, AudioMaeConfig
from mm.codecs.semanticodec.stage import CodecStage, start_codec
from mm.training.module import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class MaskedDecoderConfig:
    """The decoder that pretraining throws away."""

    width: int = 64
    """Channels; 512 in the paper."""
    depth: int = 2
    """Blocks; 8 in the paper."""
    num_heads: int = 4
    """Attention heads; 16 in the paper."""


class MaskedDecoder(nn.Module):
    """Features of visible patches -> values of all patches.

    Args:
        config: Sizes.
        encoder: Sizes of the feature extractor.
    """

    def __init__(self, config: MaskedDecoderConfig, encoder: AudioMaeConfig) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder.width, config.width)
        self.mask_token = nn.Parameter(torch.zeros(config.width))
        self.register_buffer("position", position_table(config.width, encoder.grid), persistent=False)
        self.position: Tensor
        self.blocks = nn.Sequential(
            *(Block(config.width, config.num_heads, 4.0, qkv_bias=True) for _ in range(config.depth))
        )
        self.norm = nn.LayerNorm(config.width)
        self.predict = nn.Linear(config.width, PATCH * PATCH)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, features: Tensor, visible: Tensor) -> Tensor:
        """Values (B, N, P) from features (B, 1 + M, D) of the patches `visible` (B, M)."""
        count = len(self.position) - 1
        embedded = self.embed(features)
        places = repeat(visible, "b m -> b m d", d=embedded.shape[-1])
        patches = repeat(self.mask_token.to(embedded.dtype), "d -> b n d", b=len(features), n=count)
        patches = patches.scatter(1, places, embedded[:, 1:])
        x = torch.cat([embedded[:, :1], patches], dim=1) + self.position
        return self.predict(self.norm(self.blocks(x)))[:, 1:]  # type: ignore[no-any-return]


class AudioMaeModule(CodecStage):
    """Pretrain the feature extractor of a codec.

    Args:
        codec: Weights to start from, see `mm.codecs.semanticodec.stage.start_codec`.
        preset: Sizes of a fresh codec.
        seed: Of its weights.
        hidden_share: Share of patches that the extractor does not see (paper: 0.8).
        decoder: The decoder that is thrown away.
        optimizer: Optimiser and schedule.
    """

    def __init__(
        self,
        codec: str | None = None,
        preset: str = "semanticodec_tiny",
        seed: int = 0,
        hidden_share: float = 0.8,
        decoder: MaskedDecoderConfig | None = None,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        if not 0 < hidden_share < 1:
            raise ValueError(f"hidden_share must lie in (0, 1), got {hidden_share}")
        model = start_codec(codec, preset, seed)
        super().__init__(model, [model.encoder.audiomae], optimizer)
        model.encoder.audiomae.pos_embed.requires_grad_(False)
        self.hidden_share = hidden_share
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.painter = MaskedDecoder(decoder or MaskedDecoderConfig(), model.config.encoder.audiomae)

    def compute_loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Loss of a batch of `waves`; `explained` is the share of the hidden patches' variance that is painted."""
        frames = self.model.bank(batch["waves"])  # (B, T, F)
        target = rearrange(frames, "b (t p) (f q) -> b (t f) (p q)", p=PATCH, q=PATCH)
        visible, hidden = self._split(len(frames), target.shape[1])
        audiomae = self.model.encoder.audiomae
        painted = self.painter(audiomae(frames, visible), visible)
        target, painted = (x.take_along_dim(hidden[..., None], 1) for x in (target, painted))
        error = (painted - target).square().mean()
        return error, {"explained": 1 - error.detach() / target.var()}

    def _split(self, rows: int, count: int) -> tuple[Tensor, Tensor]:
        """Random visible (B, M) and hidden (B, N - M) patches of each segment."""
        order = torch.rand(rows, count, generator=self.random(), device=self.device).argsort(1)
        seen = max(round(count * (1 - self.hidden_share)), 1)
        return order[:, :seen], order[:, seen:]
