"""Certified nearest-code search on a GPU: tensor cores narrow the field, float32 decides.

Kernel one multiplies in bfloat16 and writes only the best score of every group of 16 codes. Kernel two reads those,
keeps the groups that the error bound of `mm.kernels.code_search_blocked` cannot rule out, and compares their codes by
float32 differences. Dims: N vectors, K codes, D width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mm.kernels.dispatch import triton_is_interpreted

_GROUP = 16
_MAXIMA_BYTES = 32 << 20  # group maxima held at once: they stay in the L2 cache between the two kernels


@triton.jit
def _group_maxima_kernel(
    x, codes, half, maxima, N, K, groups,
    D: tl.constexpr, ROWS: tl.constexpr, CODES: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One tile (ROWS, CODES) of scores x . c - |c|^2 / 2, reduced to (ROWS, CODES / GROUP)."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * CODES + tl.arange(0, CODES)
    inner = tl.arange(0, STEP)
    x_at = x + rows[:, None].to(tl.int64) * D + inner[None, :]
    c_at = codes + columns[:, None].to(tl.int64) * D + inner[None, :]
    scores = tl.zeros((ROWS, CODES), tl.float32)
    for start in range(0, D, STEP):
        inside = inner[None, :] < D - start
        a = tl.load(x_at + start, mask=(rows[:, None] < N) & inside, other=0.0)
        b = tl.load(c_at + start, mask=(columns[:, None] < K) & inside, other=0.0)
        scores = tl.dot(a, tl.trans(b), scores, input_precision="ieee")
    scores -= tl.load(half + columns, mask=columns < K, other=float("inf"))[None, :]
    best = tl.max(tl.reshape(scores, (ROWS, CODES // GROUP, GROUP)), 2)
    group = tl.program_id(1) * (CODES // GROUP) + tl.arange(0, CODES // GROUP)
    at = maxima + rows[:, None].to(tl.int64) * groups + group[None, :]
    tl.store(at, best, mask=(rows[:, None] < N) & (group[None, :] < groups))


@triton.jit
def _rescore_kernel(
    x, codes, maxima, error, indices, distances, K, groups,
    D: tl.constexpr, STEP: tl.constexpr, CHUNK: tl.constexpr, GROUP: tl.constexpr, COSINE: tl.constexpr,
):  # fmt: skip
    """One vector: find the groups within reach of its best score and compare their codes exactly."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, CHUNK)
    member = tl.arange(0, GROUP)
    inner = tl.arange(0, STEP)
    top = tl.full((CHUNK,), float("-inf"), tl.float32)
    start = 0
    while start < groups:
        top = tl.maximum(
            top, tl.load(maxima + row * groups + start + lane, mask=lane < groups - start, other=float("-inf"))
        )
        start += CHUNK
    bound = tl.max(top, 0) - 2 * tl.load(error + row)
    nearest = float("inf")
    winner = 0
    start = 0
    while start < groups:
        score = tl.load(maxima + row * groups + start + lane, mask=lane < groups - start, other=float("-inf"))
        left = tl.where((score >= bound) & (lane < groups - start), lane, CHUNK)
        hit = tl.min(left, 0)
        while hit < CHUNK:
            code = (start + hit) * GROUP + member
            far = tl.zeros((GROUP, STEP), tl.float32)
            for d in range(0, D, STEP):
                inside = inner < D - d
                u = tl.load(x + row * D + d + inner, mask=inside, other=0.0)
                v_at = codes + code[:, None].to(tl.int64) * D + d + inner[None, :]
                v = tl.load(v_at, mask=(code[:, None] < K) & inside[None, :], other=0.0)
                if COSINE:
                    far -= u[None, :] * v
                else:
                    far += (u[None, :] - v) * (u[None, :] - v)
            distance = tl.where(code < K, tl.sum(far, 1), float("inf"))
            least = tl.min(distance, 0)
            if least < nearest:  # strict: groups come in ascending order, so the lowest index wins a tie
                winner = tl.min(tl.where(distance == least, code, 2147483647), 0)
                nearest = least
            left = tl.where(left == hit, CHUNK, left)
            hit = tl.min(left, 0)
        start += CHUNK
    if nearest == float("inf"):
        nearest = float("nan")
    elif COSINE:
        nearest += 1.0
    tl.store(indices + row, winner)
    tl.store(distances + row, nearest)


def nearest_triton(x: Tensor, codebook: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """x (N, D) and codebook (K, D), both float32 -> indices (N, 1) and distances (N, 1) of the nearest code."""
    x, codebook = x.contiguous(), codebook.contiguous()
    # The interpreter cannot multiply bfloat16, and needs no speed.
    work = torch.float32 if triton_is_interpreted() else torch.bfloat16
    low_codes, half, c_norm, c_lost = _prepare_codes(codebook, metric, work)
    centre = codebook.mean(0) if metric == "l2" else None
    groups = triton.cdiv(len(codebook), _GROUP)
    step = max(1, _MAXIMA_BYTES // (4 * groups))
    maxima = torch.empty((min(step, len(x)), groups), dtype=torch.float32, device=x.device)
    indices = torch.empty((len(x), 1), dtype=torch.int64, device=x.device)
    distances = torch.empty((len(x), 1), dtype=torch.float32, device=x.device)
    for start in range(0, len(x), step):
        rows = x[start : start + step]
        exact = rows if centre is None else rows - centre
        low = exact.to(work)
        error = _error(exact, low, c_norm, c_lost, half)
        _launch(rows, low, codebook, low_codes, half, maxima, error, indices[start:], distances[start:], metric)
    return indices, distances


def _prepare_codes(codebook: Tensor, metric: str, work: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rounded codes, |c|^2 / 2 (zero for cosine), the largest norm and the largest norm of what rounding lost."""
    codes = codebook - codebook.mean(0) if metric == "l2" else codebook
    low = codes.to(work)
    half = codes.square().sum(1) / 2 if metric == "l2" else torch.zeros_like(codes[:, 0])
    return low, half, low.float().norm(dim=1).max(), (codes - low.float()).norm(dim=1).max()


def _error(exact: Tensor, low: Tensor, c_norm: Tensor, c_lost: Tensor, half: Tensor) -> Tensor:
    """Largest error of a score per vector (N); the terms are those of the blocked search, the result is not rounded."""
    eps = torch.finfo(torch.float32).eps
    norm, lost = low.float().norm(dim=1), (exact - low.float()).norm(dim=1)
    return lost * (c_norm + c_lost) + norm * c_lost + (exact.shape[1] + 8) * eps * norm * c_norm + 8 * eps * half.max()


def _launch(x, low, codes, low_codes, half, maxima, error, indices, distances, metric) -> None:
    (count, width), groups = x.shape, maxima.shape[1]
    wide = width > 64
    rows, columns, step = (128, 256, 64) if wide else (128, 128, max(16, triton.next_power_of_2(width)))
    if triton_is_interpreted():
        rows, columns, step = 16, 32, 16
    grid = (triton.cdiv(count, rows), triton.cdiv(len(codes), columns))
    _group_maxima_kernel[grid](
        low, low_codes, half, maxima, count, len(codes), groups,
        D=width, ROWS=rows, CODES=columns, STEP=step, GROUP=_GROUP,
        num_warps=8 if wide else 4, num_stages=3,
    )  # fmt: skip
    _rescore_kernel[(count,)](
        x, codes, maxima, error, indices, distances, len(codes), groups,
        D=width, STEP=min(256, max(16, triton.next_power_of_2(width))), CHUNK=min(1024, triton.next_power_of_2(groups)),
        GROUP=_GROUP, COSINE=metric == "cosine", num_warps=4 if wide else 1,
    )  # fmt: skip
