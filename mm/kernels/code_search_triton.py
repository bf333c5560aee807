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


@triton.jit
def _prepare_kernel(
    x, centre, spread, low, half, norm, lost, error,
    D: tl.constexpr, BLOCK: tl.constexpr, CENTRED: tl.constexpr, CODES: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """One row minus the centre, rounded, and the norms of both parts; codes give |c|^2 / 2, vectors their error."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    exact = tl.load(x + row * D + lane, mask=lane < D, other=0.0)
    if CENTRED:
        exact -= tl.load(centre + lane, mask=lane < D, other=0.0)
    rounded = exact.to(low.dtype.element_ty)
    tl.store(low + row * D + lane, rounded, mask=lane < D)
    kept = rounded.to(tl.float32)
    left = exact - kept
    length, loss = tl.sqrt(tl.sum(kept * kept, 0)), tl.sqrt(tl.sum(left * left, 0))
    if CODES:
        tl.store(half + row, tl.sum(exact * exact, 0) / 2 if CENTRED else 0.0)
        tl.store(norm + row, length)
        tl.store(lost + row, loss)
    else:  # the terms are those of the blocked search, the result is not rounded
        most, c_norm, c_lost = tl.load(spread), tl.load(spread + 1), tl.load(spread + 2)
        tl.store(
            error + row,
            loss * (c_norm + c_lost) + length * c_lost + (D + 8) * EPS * length * c_norm + 8 * EPS * most,
        )


def nearest_triton(x: Tensor, codebook: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """x (N, D) and codebook (K, D), both float32 -> indices (N, 1) and distances (N, 1) of the nearest code."""
    x, codebook = x.contiguous(), codebook.contiguous()
    centre = codebook.mean(0) if metric == "l2" else None
    low_codes, statistics = _prepare(codebook, centre, None)
    groups = triton.cdiv(len(codebook), _GROUP)
    step = max(1, _MAXIMA_BYTES // (4 * groups))
    maxima = torch.empty((min(step, len(x)), groups), dtype=torch.float32, device=x.device)
    indices = torch.empty((len(x), 1), dtype=torch.int64, device=x.device)
    distances = torch.empty((len(x), 1), dtype=torch.float32, device=x.device)
    spread = statistics.amax(1)  # (3,)
    for start in range(0, len(x), step):
        rows = x[start : start + step]
        low, error = _prepare(rows, centre, spread)
        _launch(
            rows, low, codebook, low_codes, statistics[0], maxima, error, indices[start:], distances[start:], metric
        )
    return indices, distances


def _prepare(x: Tensor, centre: Tensor | None, spread: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rounded rows (N, D), and what the search must know of each.

    Codes (`spread` None): (3, K), |c|^2 / 2 (0 for cosine), the norm, the norm of what rounding lost. Vectors, given
    the largest of each over the codes, (3,): the largest error of one of their scores, (N).
    """
    count, width = x.shape
    # The interpreter cannot multiply bfloat16, and needs no speed.
    low = torch.empty(x.shape, dtype=torch.float32 if triton_is_interpreted() else torch.bfloat16, device=x.device)
    found = torch.empty((count,) if spread is not None else (3, count), dtype=torch.float32, device=x.device)
    half, norm, lost = (found, found, found) if spread is not None else found
    block = triton.next_power_of_2(width)
    _prepare_kernel[(count,)](
        x, centre, spread, low, half, norm, lost, found,
        D=width, BLOCK=block, CENTRED=centre is not None, CODES=spread is None,
        EPS=torch.finfo(torch.float32).eps, num_warps=min(8, max(1, block // 256)),
    )  # fmt: skip
    return low, found


def _launch(x, low, codes, low_codes, half, maxima, error, indices, distances, metric) -> None:
    (count, width), groups = x.shape, maxima.shape[1]
    tile = _tile(width)
    grid = (triton.cdiv(count, tile["ROWS"]), triton.cdiv(len(codes), tile["CODES"]))
    _group_maxima_kernel[grid](
        low, low_codes, half, maxima, count, len(codes), groups, D=width, GROUP=_GROUP, **tile,
    )  # fmt: skip
    _rescore_kernel[(count,)](
        x, codes, maxima, error, indices, distances, len(codes), groups,
        D=width, STEP=min(256, max(16, triton.next_power_of_2(width))), CHUNK=min(1024, triton.next_power_of_2(groups)),
        GROUP=_GROUP, COSINE=metric == "cosine", num_warps=_rescore_warps(width),
    )  # fmt: skip


def _tile(width: int) -> dict[str, int]:
    """Launch constants of the group maxima, chosen on an H200 (sm_90)."""
    if triton_is_interpreted():
        return {"ROWS": 16, "CODES": 32, "STEP": 16}
    if width > 64:
        return {"ROWS": 128, "CODES": 256, "STEP": 64, "num_warps": 8, "num_stages": 3}
    return {"ROWS": 128, "CODES": 128, "STEP": max(16, triton.next_power_of_2(width)), "num_warps": 4, "num_stages": 3}


def _rescore_warps(width: int) -> int:
    return 4 if width > 64 else 1
