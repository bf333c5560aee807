"""Fair timing of alternatives: all candidates take turns in one run, so that clocks and caches drift for all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

SHORTEST_SAMPLE_S = 2e-4  # below this the clock itself shows: a sample then repeats its call


@dataclass(frozen=True, kw_only=True)
class LatencyRow:
    """Timing of one candidate."""

    candidate: str
    """Its name."""
    median_ms: float
    """Median time of one call, milliseconds."""
    p20_ms: float
    """20th percentile."""
    p80_ms: float
    """80th percentile."""
    ratio: float
    """Median relative to the first candidate's; below 1 is faster."""
    repeats: int
    """Samples behind the percentiles."""


def measure(
    candidates: Mapping[str, Callable[[], Any]],
    *,
    repeats: int = 30,
    warmup: int = 5,
    device: str | torch.device = "cpu",
    flush_cache: bool = False,
) -> list[LatencyRow]:
    """Time candidates against each other.

    Each round calls every candidate once, starting with another one than the round before. Nothing of the warm-up is
    counted. On a GPU, events around the call measure its time there.

    Args:
        candidates: Name -> function without arguments; the first is the reference of `ratio`.
        repeats: Rounds (samples per candidate).
        warmup: Rounds before, uncounted; compiled or autotuned code needs some.
        device: Where the candidates run.
        flush_cache: On a GPU, overwrite its L2 cache before every call.

    Raises:
        ValueError: no candidate, or no repeat.

    Example:
        >>> rows = measure({"a": lambda: sum(range(100)), "b": lambda: sum(range(9000))}, repeats=5, warmup=1)
        >>> rows[0].ratio, rows[1].ratio > 2
        (1.0, True)
    """
    if not candidates or repeats < 1:
        raise ValueError(f"measure needs candidates and repeats >= 1, got {len(candidates)} and {repeats}")
    device = torch.device(device)
    timer = _cuda_timer(device, flush_cache) if device.type == "cuda" else _cpu_timer
    names = list(candidates)
    for _ in range(warmup):
        for name in names:
            timer(candidates[name], 1)
    calls = {name: 1 if device.type == "cuda" else _calls_per_sample(candidates[name]) for name in names}
    samples: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            samples[name].append(timer(candidates[name], calls[name]))
    return _rows(samples)


def _cpu_timer(function: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return 1e3 * (time.perf_counter() - start) / calls


def _calls_per_sample(function: Callable[[], Any]) -> int:
    once_s = max(_cpu_timer(function, 1) / 1e3, 1e-9)
    return max(1, round(SHORTEST_SAMPLE_S / once_s))


def _cuda_timer(device: torch.device, flush_cache: bool) -> Callable[[Callable[[], Any], int], float]:
    size = torch.cuda.get_device_properties(device).L2_cache_size * 2
    scratch = torch.empty(size if flush_cache else 0, dtype=torch.int8, device=device)

    def timer(function: Callable[[], Any], calls: int) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        scratch.zero_()
        torch.cuda.synchronize(device)
        start.record()
        for _ in range(calls):
            function()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / calls

    return timer


def _rows(samples: Mapping[str, list[float]]) -> list[LatencyRow]:
    quantiles = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    found = {
        name: torch.tensor(values, dtype=torch.float64).quantile(quantiles).tolist() for name, values in samples.items()
    }
    reference = next(iter(found.values()))[1]
    return [
        LatencyRow(
            candidate=name,
            median_ms=median,
            p20_ms=low,
            p80_ms=high,
            ratio=median / reference,
            repeats=len(samples[name]),
        )
        for name, (low, median, high) in found.items()
    ]


def as_dicts(rows: list[LatencyRow]) -> list[dict[str, Any]]:
    """Rows as plain data, for tables and JSON."""
    return [asdict(row) for row in rows]
