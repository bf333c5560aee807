"""Nearest codeword of every vector, without the matrix of all distances.

The winner is exact: candidates found in low precision are certified by an error bound and compared again in float32 on
the difference of the two vectors. Distances are never computed under autocast.
Dims: N vectors, K codes, D width, R winners.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mm.kernels.code_search_blocked import nearest_blocked
from mm.kernels.dispatch import Candidate, Dispatcher, Situation, needs_triton, situation

METRICS = ("l2", "cosine")


def _too_many_winners(where: Situation) -> str | None:
    # `length` carries the number of winners: the Triton search certifies one.
    return f"it finds one winner, topk={where.length} were asked for" if where.length > 1 else None


DISPATCH = Dispatcher(
    "nearest_code",
    Candidate("triton", "group maxima on tensor cores", lambda s: needs_triton(s) or _too_many_winners(s)),
    Candidate("blocked", "low-precision matmul in blocks, winners certified"),
    Candidate(
        "reference", "all differences, row by row", unsuited=lambda _: "it is written for reading, not for speed"
    ),
)


def nearest_code(
    x: Tensor, codebook: Tensor, *, metric: str = "l2", topk: int = 1, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Find the nearest codewords of each vector.

    Args:
        x: Vectors, (..., D), any float dtype, finite.
        codebook: Codewords, (K, D), any float dtype, finite.
        metric: "l2" (squared Euclidean distance) or "cosine" (1 - cosine of the angle; zero vectors have cosine 0).
        topk: Winners per vector (R), nearest first.
        impl: "auto", "triton", "blocked" or "reference"; all give the same winners.

    Returns:
        Indices, int64, and distances, float32 (float64 for float64 input), both (...) or (..., R) if `topk` > 1. Of
        codewords at the same distance the lowest index comes first. Neither carries a gradient. A vector that is not
        finite gets index 0 and distance NaN.

    Raises:
        ValueError: shapes that do not fit, an unknown metric or implementation, or `topk` outside 1..K.

    Example:
        >>> codes = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
        >>> nearest_code(torch.tensor([[3.0, 3.0]]), codes)
        (tensor([1]), tensor([1.]))
    """
    if codebook.ndim != 2 or x.ndim < 1 or x.shape[-1] != codebook.shape[-1]:
        raise ValueError(
            f"nearest_code needs x (..., D) and codebook (K, D) of one width, "
            f"got {tuple(x.shape)} and {tuple(codebook.shape)}"
        )
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; choose {' or '.join(METRICS)}")
    if not 1 <= topk <= len(codebook):
        raise ValueError(f"topk must lie in 1..{len(codebook)} (the number of codes), got {topk}")
    indices, distances = _nearest_code(x.detach().reshape(-1, x.shape[-1]), codebook.detach(), metric, topk, impl)
    shape = x.shape[:-1] if topk == 1 else (*x.shape[:-1], topk)
    return indices.reshape(shape), distances.reshape(shape)


@torch.library.custom_op("mm::nearest_code", mutates_args=())
def _nearest_code(x: Tensor, codebook: Tensor, metric: str, topk: int, impl: str) -> tuple[Tensor, Tensor]:
    """x (N, D), codebook (K, D) -> indices (N, R), distances (N, R)."""
    chosen = DISPATCH.choose(situation(x, length=topk), impl)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if len(x) == 0:
        return x.new_empty((0, topk), dtype=torch.int64), x.new_empty((0, topk), dtype=dtype)
    with torch.autocast(x.device.type, enabled=False):
        x, codebook = x.to(dtype), codebook.to(dtype)
        if metric == "cosine":
            x, codebook = F.normalize(x, dim=-1), F.normalize(codebook, dim=-1)
        if chosen == "triton":
            from mm.kernels.code_search_triton import nearest_triton

            return nearest_triton(x, codebook, metric)
        if chosen == "blocked":
            return nearest_blocked(x, codebook, metric, topk)
        return nearest_reference(x, codebook, metric, topk)


@_nearest_code.register_fake
def _(x: Tensor, codebook: Tensor, metric: str, topk: int, impl: str) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty((x.shape[0], topk), dtype=torch.int64), x.new_empty((x.shape[0], topk), dtype=dtype)


@register_flop_formula(torch.ops.mm.nearest_code)
def _flops(x_shape, codebook_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * x_shape[0] * codebook_shape[0] * codebook_shape[1]


def nearest_reference(x: Tensor, codebook: Tensor, metric: str, topk: int) -> tuple[Tensor, Tensor]:
    """The definition: every difference, one vector at a time; O(K D) memory, slow."""
    indices, distances = [], []
    for row in x:
        far = (codebook - row).square().sum(-1) if metric == "l2" else 1 - (codebook * row).sum(-1)  # (K)
        values, order = far.sort(stable=True)  # stable: the lowest index of equals comes first
        bad = ~row.isfinite().all()
        indices.append(order[:topk].masked_fill(bad, 0))
        distances.append(values[:topk].masked_fill(bad, torch.nan))
    return torch.stack(indices), torch.stack(distances)
