"""Vector quantisation with a codebook that follows its inputs by moving averages.

    s <- d s + (1 - d) counts        m <- d m + (1 - d) sums of the inputs of each code
    codebook = m / s~                s~ = (s + eps) / (sum s + K eps) * sum s

No gradient reaches the codebook; the input gets the gradient of the output (straight-through) and of the commitment
loss.
Dims: N vectors, K codes, D width.
Source: van den Oord et al. 2017 (VQ-VAE), appendix A.1; SemantiCodec (arXiv:2405.00233) for its acoustic tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mm.kernels import nearest_code


@dataclass(frozen=True, kw_only=True)
class VectorQuantizerConfig:
    """Sizes and update rule of one codebook."""

    size: int
    """Codes (K)."""
    width: int
    """Channels per code (D)."""
    metric: Literal["l2", "cosine"] = "l2"
    """l2: Euclidean; cosine: inputs and codes are unit vectors."""
    decay: float = 0.9
    """Factor d of the moving averages."""
    epsilon: float = 1e-5
    """Laplace smoothing of the code counts."""
    commitment: float = 1.0
    """Weight of the commitment loss."""
    revive_below: float = 0.0
    """Codes whose running count falls below this are replaced by inputs; 0 never replaces."""
    seed: int = 0
    """Draws the initial codebook."""

    def __post_init__(self) -> None:
        if self.size < 1 or self.width < 1:
            raise ValueError(f"size and width must be at least 1, got {self.size} and {self.width}")
        if self.metric not in ("l2", "cosine"):
            raise ValueError(f"metric must be 'l2' or 'cosine', got {self.metric!r}")
        if not 0 < self.decay < 1:
            raise ValueError(f"decay must lie in (0, 1), got {self.decay}")
        if self.revive_below < 0:
            raise ValueError(f"revive_below must not be negative, got {self.revive_below}")


class Quantized(NamedTuple):
    """What a quantiser returns."""

    quantized: Tensor
    """Codewords, (..., D), dtype of the input; their gradient goes straight to the input."""
    codes: Tensor
    """Indices into the codebook, (...), int64."""
    loss: Tensor
    """Weighted commitment loss, mean squared error over the kept vectors, scalar float32."""


class VectorQuantizer(nn.Module):
    """One codebook, updated in training mode by moving averages; the same on every process of a distributed run.

    Deviation: the running counts start at 1 and the sums at the codebook. Counts that start at 0, as in the released
    SemantiCodec, throw every unused code to a norm near 1/epsilon in the first step, where it is never chosen again.

    Example:
        >>> quantizer = VectorQuantizer(VectorQuantizerConfig(size=4, width=2)).eval()
        >>> torch.equal(quantizer(quantizer.codebook).codes, torch.arange(4))
        True
    """

    codebook: Tensor
    cluster_size: Tensor
    cluster_sum: Tensor
    steps: Tensor

    def __init__(self, config: VectorQuantizerConfig) -> None:
        super().__init__()
        self.config = config
        bound = math.sqrt(6 / config.width)  # Kaiming-uniform with the width as fan-in
        generator = torch.Generator().manual_seed(config.seed)
        draw = torch.rand(config.size, config.width, generator=generator)
        codebook = self._on_sphere((2 * draw - 1) * bound)
        self.register_buffer("codebook", codebook)
        self.register_buffer("cluster_size", torch.ones(config.size))
        self.register_buffer("cluster_sum", codebook.clone())
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Quantized:
        """Replace every vector by its nearest code; in training mode the codebook moves afterwards.

        Args:
            x: Vectors, (..., D), any float dtype.
            keep: True where a vector is real, (...) bool; others are quantised but neither move the codebook nor
                count in the loss.
        """
        exact = self._on_sphere(x.float())
        codes, _ = nearest_code(exact, self.codebook.float(), metric=self.config.metric)
        chosen = F.embedding(codes, self.codebook.float())
        error = (exact - chosen.detach()).square().mean(-1)  # (...)
        share = torch.ones_like(error) if keep is None else keep.to(error.dtype)
        loss = self.config.commitment * (error * share).sum() / share.sum().clamp(min=1)
        if self.training:
            self._update(exact.detach().reshape(-1, x.shape[-1]), codes.reshape(-1), share.reshape(-1))
        return Quantized((exact + (chosen - exact).detach()).to(x.dtype), codes, loss)

    def encode(self, x: Tensor) -> Tensor:
        """Codes of vectors (..., D) -> (...) int64; never changes the codebook."""
        return nearest_code(x.float(), self.codebook.float(), metric=self.config.metric)[0]

    def lookup(self, codes: Tensor) -> Tensor:
        """Codewords of codes (...) -> (..., D).

        Raises:
            ValueError: a code outside the codebook.
        """
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= self.config.size):
            raise ValueError(
                f"codes must lie in 0..{self.config.size - 1}, got {int(codes.min())}..{int(codes.max())}; "
                "were they made with another codebook?"
            )
        return F.embedding(codes, self.codebook)

    def _on_sphere(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) if self.config.metric == "cosine" else x

    @torch.no_grad()
    def _update(self, x: Tensor, codes: Tensor, share: Tensor) -> None:
        """Moving averages over the vectors (N, D) of all processes."""
        config = self.config
        batch = x.new_zeros(config.size, config.width + 1)  # sums and counts in one tensor: one all-reduce
        batch.index_add_(0, codes, torch.cat([x, torch.ones_like(x[:, :1])], dim=1) * share[:, None])
        if _distributed():
            dist.all_reduce(batch)
        size = self.cluster_size.float().lerp_(batch[:, -1], 1 - config.decay)
        total = self.cluster_sum.float().lerp_(batch[:, :-1], 1 - config.decay)
        if config.revive_below:
            size, total = self._revive(size, total, x, share)
        everything = size.sum()
        smooth = (size + config.epsilon) / (everything + config.size * config.epsilon) * everything
        self.cluster_size.copy_(size)
        self.cluster_sum.copy_(total)
        self.codebook.copy_(self._on_sphere(total / smooth[:, None]))
        self.steps += 1

    def _revive(self, size: Tensor, total: Tensor, x: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """Put inputs in the place of dead codes.

        Which inputs is settled by a hash of the step, so that a resumed run repeats itself and no number leaves the
        device. Padding is never taken; the picks of the first process go to all others.
        """
        real = torch.argsort(share, descending=True, stable=True)  # kept vectors first
        count = (share > 0).sum()
        pick = (torch.arange(len(size), device=x.device) * 7919 + self.steps * 104_729) % count.clamp(min=1)
        candidates = x[real[pick]]  # (K, D)
        usable = (count > 0).to(x.dtype)
        if _distributed():
            dist.broadcast(candidates, src=0)
            dist.broadcast(usable, src=0)
        dead = (size < self.config.revive_below) & (usable > 0)
        size = torch.where(dead, self.config.revive_below, size)
        total = torch.where(dead[:, None], candidates * self.config.revive_below, total)
        return size, total


def perplexity(codes: Tensor, size: int) -> Tensor:
    """Effective number of used codes: exp of the entropy of their frequencies; 1 (one code) .. `size` (all equal).

    Example:
        >>> perplexity(torch.tensor([0, 1, 2, 3]), 8)
        tensor(4.)
    """
    share = torch.bincount(codes.reshape(-1), minlength=size).float() / max(codes.numel(), 1)
    return torch.special.entr(share).sum().exp()


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
