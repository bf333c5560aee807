"""Peak memory of the word-level contrast, streamed and with all pairs at once, forward and backward.

python -m mm.medical.velvet.memory
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from mm.command import emit_table
from mm.kernels.measure import peak_bytes
from mm.medical.velvet.config import LocalConfig
from mm.medical.velvet.loss import LevelEmbeddings, hierarchical_contrastive_loss

MIB = 2**20


def measure(pairs: int, tokens: int, regions: int, width: int, impl: str, device: str = "cpu") -> dict[str, Any]:
    """Peak bytes beyond the inputs, and seconds, of one loss with its gradients."""
    generator = torch.Generator().manual_seed(0)
    volume = torch.randn(pairs, regions, width, generator=generator).to(device).requires_grad_()
    text = torch.randn(pairs, tokens, width, generator=generator).to(device).requires_grad_()

    def step() -> tuple[torch.Tensor, ...]:
        sides = LevelEmbeddings(word=volume), LevelEmbeddings(word=text)
        loss = hierarchical_contrastive_loss(*sides, local=LocalConfig(impl=impl))["word"]
        return torch.autograd.grad(loss, (volume, text))

    start = time.perf_counter()
    peak = peak_bytes(step, device)
    return {"implementation": impl, "peak_mib": peak / MIB, "seconds": time.perf_counter() - start}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=10, help="B (default: 10)")
    parser.add_argument("--tokens", type=int, default=510, help="L (default: 510)")
    parser.add_argument("--regions", type=int, default=1728, help="S (default: 1728)")
    parser.add_argument("--width", type=int, default=512, help="E (default: 512)")
    parser.add_argument("--device", default="cpu")
    a = parser.parse_args(argv)
    rows = [measure(a.pairs, a.tokens, a.regions, a.width, impl, a.device) for impl in ("blocked", "reference")]
    for row in rows:
        row["share_of_reference"] = row["peak_mib"] / rows[-1]["peak_mib"]
    emit_table(rows, f"B = {a.pairs}, L = {a.tokens}, S = {a.regions}, E = {a.width}, {a.device}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
