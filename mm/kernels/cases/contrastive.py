"""Contests of the local contrastive similarity, forward and backward."""

from __future__ import annotations

from functools import partial

import torch

from mm.kernels.bench import Case, Contest, Target
from mm.kernels.contrastive import local_contrastive_similarity

SHAPES = {
    "VELVET-Med words, batch 4, 256 tokens": (4, 1728, 256, 512),
    "VELVET-Med words, batch 10, 510 tokens": (10, 1728, 510, 512),
    "VELVET-Med sentences, batch 10": (10, 216, 20, 512),
}
"""Batch, regions, tokens, channels."""


def cases() -> list[Case]:
    """Against all pairs at once."""
    targets = (Target(kind="memory", limit=0.1, peer="dense"), Target(kind="speedup", limit=1.0, peer="dense"))
    return [
        Case(
            kernel="local_contrastive_similarity",
            shape=name,
            build=partial(_build, name),
            devices=("cuda",) if "batch 10, 510" in name else ("cpu", "cuda"),
            targets={"cpu": targets} if "words" in name else {},
        )
        for name in SHAPES
    ]


def _build(name: str, device: str) -> Contest:
    batch, regions, length, width = SHAPES[name]
    rng = torch.Generator().manual_seed(0)
    r = torch.randn(batch, regions, width, generator=rng).to(device).requires_grad_()
    u = torch.randn(batch, length, width, generator=rng).to(device).requires_grad_()
    grad = torch.randn(batch, batch, generator=rng).to(device)

    def run(impl: str) -> None:
        torch.autograd.grad(local_contrastive_similarity(r, u, impl=impl), (r, u), grad)

    return Contest(
        ours=lambda: run("blocked"),
        peers={"dense": lambda: run("reference")},
        bytes=8.0 * (r.numel() + u.numel()),
        flops=12.0 * batch * batch * regions * length * width,
    )
