"""Nearest codewords at the sizes of the semantic, acoustic and visual tokenizers."""

from __future__ import annotations

from functools import partial

import torch

from mm.kernels.bench import Case, Contest, Target
from mm.kernels.code_search import nearest_code
from mm.kernels.code_search_blocked import matmul_dtype

SPEED_CPU = (
    Target(kind="speedup", limit=1.5, peer="cdist + argmin"),
    Target(kind="memory", limit=0.05, peer="cdist + argmin"),
)
SPEED_GPU = (Target(kind="speedup", limit=3, peer="cdist + argmin"),)


def cases() -> list[Case]:
    """Vectors x codes x width."""
    both = {"cpu": SPEED_CPU, "cuda": SPEED_GPU}
    return [
        _case(4096, 32768, 768, "l2", ("cpu", "cuda"), both),
        _case(784, 8192, 32, "cosine", ("cpu",), {}),
        _case(24576, 32768, 768, "l2", ("cuda",), {"cuda": SPEED_GPU}),
        _case(7840, 8192, 32, "cosine", ("cuda",), {"cuda": SPEED_GPU}),
        _case(100352, 8192, 32, "cosine", ("cuda",), {"cuda": SPEED_GPU}),
        _case(4096, 32768, 3072, "l2", ("cuda",), {"cuda": SPEED_GPU}),
    ]


def _case(count: int, codes: int, width: int, metric: str, devices: tuple[str, ...], targets: dict) -> Case:
    return Case(
        kernel="nearest_code",
        shape=f"{count} vectors, {codes} x {width} codes, {metric}",
        build=partial(_contest, count, codes, width, metric),
        devices=devices,
        targets=targets,
    )


def _contest(count: int, codes: int, width: int, metric: str, device: str) -> Contest:
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(count, width, device=device, generator=generator)
    book = torch.randn(codes, width, device=device, generator=generator)
    if metric == "cosine":
        x, book = (torch.nn.functional.normalize(t, dim=-1) for t in (x, book))
    half = book.square().sum(1) / 2
    return Contest(
        ours=lambda: nearest_code(x, book, metric=metric),
        peers={
            "cdist + argmin": lambda: torch.cdist(x, book).argmin(1),
            "matmul + argmax, 2048 rows at a time": lambda: torch.cat(
                [torch.addmm(-half, part, book.T).argmax(1) for part in x.split(2048)]
            ),
        },
        bytes=4.0 * width * (count + codes) + 12 * count,
        flops=2.0 * count * codes * width,
        matmul="bfloat16" if device == "cuda" else str(matmul_dtype(x)).removeprefix("torch."),
    )
