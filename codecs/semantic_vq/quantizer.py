"""A codebook on the unit sphere that every used code follows at the same pace.

    z = x / |x|      index = argmax cos(z, e_k)      m_k = normalise(mean of the z of code k)
    e_k <- normalise(d e_k + (1 - d) m_k)  for used codes; the others keep their vector

This is not the classical average of sums and counts (`mm.codecs.quantize`): a rare code moves as far as a frequent one.
Dims: N vectors, K codes, D width.
Source: VQ-KD (BEiT v2, Peng et al. 2022, arXiv:2208.06366), as published in its code.
Deviation: the k-means start sees the vectors of all processes and all of them begin with one codebook; codes that stay
idle can be revived; usage is counted in training only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mm.codecs.quantize import Quantized
from mm.kernels import nearest_code


@dataclass(frozen=True, kw_only=True)
class CosineQuantizerConfig:
    """Sizes and update rule of a codebook on the unit sphere."""

    size: int = 8192
    """Codes (K)."""
    width: int = 32
    """Channels per code (D)."""
    decay: float = 0.99
    """Factor d of the moving averages."""
    commitment: float = 1.0
    """Weight of the commitment loss."""
    kmeans_steps: int = 10
    """Steps of spherical k-means on the first training batch; 0 keeps the random start."""
    revive_after: int = 0
    """Training steps without a vector after which a code is put on a current one; 0 never does (published)."""
    seed: int = 0
    """Draws the random start and the seeds of k-means."""

    def __post_init__(self) -> None:
        if self.size < 1 or self.width < 1:
            raise ValueError(f"size and width must be at least 1, got {self.size} and {self.width}")
        if not 0 < self.decay < 1:
            raise ValueError(f"decay must lie in (0, 1), got {self.decay}")
        if self.commitment < 0 or self.kmeans_steps < 0 or self.revive_after < 0:
            raise ValueError(
                "commitment, kmeans_steps and revive_after must not be negative, "
                f"got {self.commitment}, {self.kmeans_steps}, {self.revive_after}"
            )


class CosineQuantizer(nn.Module):
    """One codebook of unit vectors; the same on every process of a distributed run.

    Example:
        >>> quantizer = CosineQuantizer(CosineQuantizerConfig(size=4, width=2)).eval()
        >>> torch.equal(quantizer.encode(3 * quantizer.codebook), torch.arange(4))
        True
    """

    codebook: Tensor
    cluster_size: Tensor
    idle: Tensor
    steps: Tensor
    started: Tensor

    def __init__(self, config: CosineQuantizerConfig) -> None:
        super().__init__()
        self.config = config
        draw = torch.randn(config.size, config.width, generator=torch.Generator().manual_seed(config.seed))
        self.register_buffer("codebook", F.normalize(draw, dim=-1))
        self.register_buffer("cluster_size", torch.zeros(config.size))
        self.register_buffer("idle", torch.zeros(config.size, dtype=torch.int64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("started", torch.tensor(config.kmeans_steps == 0))
        self._known_started = False  # so that the buffer is read back from the device once, not in every step

    def forward(self, x: Tensor) -> Quantized:
        """Replace every vector by its nearest code; in training mode the codebook moves afterwards.

        Args:
            x: Vectors, (..., D), any float dtype.

        Returns:
            Unit codewords with a straight-through gradient, codes and the weighted commitment loss
            mean((e - z)^2) over all elements, which equals (2 - 2 cos) / D.
        """
        z = F.normalize(x.float(), dim=-1)
        flat = z.detach().reshape(-1, x.shape[-1])
        if self.training and not self._known_started:
            self._start(flat)
        codes, _ = nearest_code(z, self.codebook.float(), metric="cosine")
        chosen = F.embedding(codes, self.codebook.float())  # the old codebook, also in the loss
        loss = self.config.commitment * (chosen - z).square().mean()
        if self.training:
            self._update(flat, codes.reshape(-1))
        return Quantized((z + (chosen - z).detach()).to(x.dtype), codes, loss)

    def encode(self, x: Tensor) -> Tensor:
        """Codes of vectors (..., D) -> (...) int64; never changes the codebook."""
        return nearest_code(x.float(), self.codebook.float(), metric="cosine")[0]

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
        return F.embedding(codes.long(), self.codebook)

    @torch.no_grad()
    def _start(self, z: Tensor) -> None:
        """k-means on the first batch of all processes, unless the codebook has learned already."""
        if not bool(self.started):
            every = _gathered(z)
            generator = torch.Generator().manual_seed(self.config.seed)
            found = spherical_kmeans(every, self.config.size, steps=self.config.kmeans_steps, generator=generator)
            if _distributed():
                dist.broadcast(found, src=0)
            self.codebook.copy_(found)
            self.started.fill_(True)
        self._known_started = True

    @torch.no_grad()
    def _update(self, z: Tensor, codes: Tensor) -> None:
        """Move the used codes towards their vectors z (N, D) of all processes."""
        config = self.config
        batch = z.new_zeros(config.size, config.width + 1)  # sums and counts in one tensor: one all-reduce
        batch.index_add_(0, codes, torch.cat([z, torch.ones_like(z[:, :1])], dim=1))
        if _distributed():
            dist.all_reduce(batch)
        counts, used = batch[:, -1], batch[:, -1] > 0
        old = self.codebook.float()
        moved = F.normalize(old.lerp(F.normalize(batch[:, :-1], dim=-1), 1 - config.decay), dim=-1)
        new = torch.where(used[:, None], moved, old)
        self.cluster_size.copy_(self.cluster_size.float().lerp(counts, 1 - config.decay))
        self.idle.copy_(torch.where(used, 0, self.idle + 1))
        if config.revive_after:
            dead = self.idle >= config.revive_after
            new = torch.where(dead[:, None], self._candidates(z), new)
            self.idle.masked_fill_(dead, 0)
        self.codebook.copy_(new)
        self.steps += 1

    def _candidates(self, z: Tensor) -> Tensor:
        """A current vector for every code (K, D); a hash of the step picks, so that a resumed run repeats itself."""
        pick = (torch.arange(self.config.size, device=z.device) * 7919 + self.steps * 104_729) % len(z)
        candidates = z[pick]
        if _distributed():
            dist.broadcast(candidates, src=0)
        return candidates


def spherical_kmeans(z: Tensor, size: int, *, steps: int, generator: torch.Generator) -> Tensor:
    """Centres (K, D) of unit vectors (N, D) by cosine; a centre without vectors stays where it is.

    Args:
        z: Unit vectors, at least one.
        size: Centres (K); with fewer vectors than centres the seeds repeat.
        steps: Lloyd steps.
        generator: Draws the seeds; on the CPU.

    Raises:
        ValueError: there is no vector.
    """
    if not len(z):
        raise ValueError("there is nothing to cluster: the first batch holds no vector")
    enough = len(z) >= size
    pick = torch.randperm(len(z), generator=generator)[:size]
    pick = pick if enough else torch.randint(len(z), (size,), generator=generator)
    centres = z.float()[pick.to(z.device)]
    for _ in range(steps):
        codes, _ = nearest_code(z, centres, metric="cosine")
        sums = torch.zeros_like(centres).index_add_(0, codes, z.float())
        empty = torch.bincount(codes, minlength=size) == 0
        centres = torch.where(empty[:, None], centres, F.normalize(sums, dim=-1))
    return centres


def _gathered(z: Tensor) -> Tensor:
    """Vectors of all processes in the order of their ranks; processes may hold different numbers of them."""
    if not _distributed():
        return z
    counts = [torch.zeros((), dtype=torch.int64, device=z.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor(len(z), device=z.device))
    longest = int(torch.stack(counts).max())
    padded = z.new_zeros(longest, z.shape[1])
    padded[: len(z)] = z
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
