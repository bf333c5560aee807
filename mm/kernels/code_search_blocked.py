"""Certified nearest-code search in plain torch, in blocks that stay in the cache.

Without |x|^2, which all codes share, the nearest code has the largest score s_j = x . c_j - |c_j|^2 / 2 (cosine: unit
vectors, no second term). A matmul in the fastest dtype of the machine gives s_j up to a known error e: rounding of both
operands, of the result and of the running sum.

    e = |x - x'| |c|max + |x'| |c - c'|max + u |x' . c'|max + (D + 8) eps |x'| |c'|max + 4 eps |c|^2 max

so the winner is among the codes with s'_j + e >= max_i(s'_i - e): a handful per vector, compared again exactly.
Subtracting the mean code from both sides keeps e small when all features share a large mean.
Dims: N vectors, K codes, D width, R winners, P candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 2048  # vectors per block; with 512 codes one block of scores is 4 MB in float32
_SCORES = 1 << 20  # scores per block
_GROUP = 16  # codes whose scores are reduced together before candidates are looked for
_WIDTH = 16 * _GROUP  # codes per block are a multiple of this
_GATHER = 1 << 20  # elements of a chunk of gathered codes
_KEPT = 64  # candidates per vector that are held before they are thinned out


def nearest_blocked(x: Tensor, codebook: Tensor, metric: str, topk: int) -> tuple[Tensor, Tensor]:
    """x (N, D) and codebook (K, D) of one dtype, float32 or float64 -> indices (N, R), distances (N, R)."""
    centre = codebook.mean(0) if metric == "l2" else torch.zeros_like(codebook[0])
    parts = [_search_rows(rows, codebook, centre, metric, topk) for rows in x.split(_ROWS)]
    return torch.cat([indices for indices, _ in parts]), torch.cat([distances for _, distances in parts])


def _search_rows(x: Tensor, codebook: Tensor, centre: Tensor, metric: str, topk: int) -> tuple[Tensor, Tensor]:
    work = matmul_dtype(x)
    exact = x - centre
    rounded = exact.to(work)
    x_norm = rounded.to(x.dtype).norm(dim=1)
    x_lost = (exact - rounded.to(x.dtype)).norm(dim=1)  # |x - x'|
    del exact
    floor = x.new_full((len(x), topk), -torch.inf)  # the R best certified lower bounds of each vector so far
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    width = max(_WIDTH, _SCORES // len(x) // _WIDTH * _WIDTH)
    for start in range(0, len(codebook), width):
        codes = codebook[start : start + width]
        scores, error = _scores(rounded, x_norm, x_lost, codes - centre, metric)
        maxima = _group_maxima(scores)
        floor = _raise_floor(floor, maxima - error[:, None])
        rows, columns = _candidates(scores, maxima, floor[:, -1:] - error[:, None])
        found.append((rows, columns + start, _distances(x, rows, codes, columns, metric)))
        if sum(len(entry[0]) for entry in found) > _KEPT * len(x):
            found = [_nearest_first(found, topk)]
    return _winners(_nearest_first(found, topk), len(x), topk)


def matmul_dtype(x: Tensor) -> torch.dtype:
    """bfloat16 where it is faster than float32 and the product takes most of the time, else the dtype of `x`."""
    if x.dtype == torch.float64 or x.shape[1] < 128:
        return x.dtype
    if x.device.type == "cuda":
        return torch.bfloat16
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if x.device.type == "cpu" and native else torch.float32


def _scores(rounded: Tensor, x_norm: Tensor, x_lost: Tensor, codes: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """Scores (n, k) in the exact dtype, and their largest error per vector (n)."""
    low = codes.to(rounded.dtype)
    high = low.to(codes.dtype)
    c_norm, c_lost = high.norm(dim=1).max(), (codes - high).norm(dim=1).max()
    scores = (rounded @ low.T).to(codes.dtype)
    eps = torch.finfo(codes.dtype).eps
    error = x_lost * (c_norm + c_lost) + x_norm * c_lost  # both operands were rounded
    if rounded.dtype != codes.dtype:  # the result was rounded, too (max and min are much faster than a norm)
        error += torch.finfo(rounded.dtype).eps / 2 * torch.maximum(scores.amax(1), -scores.amin(1))
    error += (codes.shape[1] + 8) * eps * x_norm * c_norm  # and the running sum
    if metric == "l2":
        half = codes.square().sum(1) / 2
        scores -= half
        error += 8 * eps * half.max()
    return scores, error


def _raise_floor(floor: Tensor, bounds: Tensor) -> Tensor:
    """The R-th best lower bound (n, R) can only rise; each group of codes lends its best one, (n, k')."""
    if floor.shape[1] == 1:
        return torch.maximum(floor, bounds.amax(1, keepdim=True))
    return torch.cat([floor, bounds], dim=1).topk(floor.shape[1], dim=1).values


def _group_maxima(scores: Tensor) -> Tensor:
    """Maxima over `_GROUP` codes that lie a stride apart (reducing the middle dim is vectorised), then the rest."""
    stride = scores.shape[1] // _GROUP
    whole, rest = scores.split([stride * _GROUP, scores.shape[1] - stride * _GROUP], dim=1)
    if stride == 0:
        return rest
    maxima = whole.unflatten(1, (_GROUP, stride)).amax(1)
    return torch.cat([maxima, rest], dim=1) if rest.shape[1] else maxima


def _candidates(scores: Tensor, maxima: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of all scores that reach the bound of their row (n, 1); looks inside promising groups only."""
    stride = scores.shape[1] // _GROUP
    rows, group = (maxima >= bound).nonzero(as_tuple=True)
    single = group >= stride  # codes after the last whole group stand alone
    inside = rows[~single], group[~single]
    members = inside[1][:, None] + stride * torch.arange(_GROUP, device=scores.device)  # (groups, _GROUP)
    which, member = (scores[inside[0][:, None], members] >= bound[inside[0]]).nonzero(as_tuple=True)
    columns = torch.cat([members[which, member], group[single] + stride * (_GROUP - 1)])
    return torch.cat([inside[0][which], rows[single]]), columns


def _distances(x: Tensor, rows: Tensor, codes: Tensor, columns: Tensor, metric: str) -> Tensor:
    """Distances of the pairs (rows, columns), from differences or products of the unrounded vectors, (P)."""
    step = max(1, _GATHER // x.shape[1])
    parts = []
    for some, those in zip(rows.split(step), columns.split(step), strict=True):
        pair = codes[those]  # (p, D)
        parts.append(pair.sub_(x[some]).square_().sum(1) if metric == "l2" else 1 - pair.mul_(x[some]).sum(1))
    return torch.cat(parts)


def _nearest_first(found: list[tuple[Tensor, Tensor, Tensor]], topk: int) -> tuple[Tensor, Tensor, Tensor]:
    """Merge candidates, order them by vector, distance, index, and keep the R first of each vector."""
    rows, columns, distances = (torch.cat(entries) for entries in zip(*found, strict=True))
    order = columns.argsort(stable=True)  # stable sorts, the least important key first
    order = order[distances[order].argsort(stable=True)]
    order = order[rows[order].argsort(stable=True)]
    order = order[_rank(rows[order]) < topk]
    return rows[order], columns[order], distances[order]


def _rank(rows: Tensor) -> Tensor:
    """Position of every entry among those of its vector; `rows` is sorted."""
    return torch.arange(len(rows), device=rows.device) - torch.searchsorted(rows, rows)


def _winners(found: tuple[Tensor, Tensor, Tensor], count: int, topk: int) -> tuple[Tensor, Tensor]:
    """Lists of winners -> indices and distances (n, R); a vector without any (it holds NaN) gets 0 and NaN."""
    rows, columns, distances = found
    slots = rows, _rank(rows)
    indices = columns.new_zeros((count, topk)).index_put(slots, columns)
    return indices, distances.new_full((count, topk), torch.nan).index_put(slots, distances)
