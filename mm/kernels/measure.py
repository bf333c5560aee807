"""Time, peak memory and the two ceilings of a machine (copy bandwidth, matmul rate), measured and never assumed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds per call over the repeats of one candidate."""

    median: float
    p20: float
    p80: float

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        """Median and spread of raw times."""
        if len(seconds) < 2:
            return cls(*(seconds * 3))
        cuts = statistics.quantiles(seconds, n=5, method="inclusive")
        return cls(statistics.median(seconds), cuts[0], cuts[3])


@dataclass(frozen=True)
class Ceilings:
    """What this device reached in the same run."""

    bytes_per_s: float
    """Large copy, bytes read plus bytes written."""
    flops_per_s: Mapping[str, float]
    """Large matrix product by dtype name ("float32" is IEEE, without TF32)."""


def time_alternating(
    candidates: Mapping[str, Callable[[], Any]], *, device: str, budget_s: float = 2.0, warmup: int = 2, least: int = 5
) -> dict[str, Timing]:
    """Time candidates in turn, so that drift of the machine hits all of them alike.

    Args:
        candidates: Label -> call. Every call is warmed up first, which also pays for compilation.
        device: "cpu" or "cuda". On CUDA events time the device alone: before each call the L2 cache is overwritten so
            often that the whole call is queued by the time the device reaches it, as in a loop that keeps it busy.
        budget_s: Time to spend per candidate.
        warmup: Unrecorded calls per candidate.
        least: Recorded rounds at least; at most 200.
    """
    for call in candidates.values():
        for _ in range(warmup):
            call()
    once = _cpu_seconds
    if device == "cuda":
        torch.cuda.synchronize()
        once = partial(_cuda_seconds, lead_s=1.5 * max(_issue_seconds(call) for call in candidates.values()))
    slowest = sum(_cpu_seconds(partial(once, call)) for call in candidates.values())  # with the lead
    rounds = min(200, max(least, int(budget_s * len(candidates) / max(slowest, 1e-9))))
    seconds: dict[str, list[float]] = {label: [] for label in candidates}
    for _ in range(rounds):
        for label, call in candidates.items():
            seconds[label].append(once(call))
    return {label: Timing.of(values) for label, values in seconds.items()}


def _cpu_seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _issue_seconds(call: Callable[[], Any]) -> float:
    """How long the host needs to queue a call on an idle device."""
    torch.cuda.synchronize()
    spent = _cpu_seconds(call)
    torch.cuda.synchronize()
    return spent


def _cuda_seconds(call: Callable[[], Any], lead_s: float = 0.0) -> float:
    """Device time of a call that is queued behind at least `lead_s` seconds of other work."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for _ in range(1 + min(200, int(lead_s / _FLUSH_S))):
        _flush_cache()
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


_CACHE_BREAKER: list[torch.Tensor] = []
_FLUSH_S = 50e-6
"""What one overwriting takes at least: 256 MiB at 5 TB/s."""


def _flush_cache() -> None:
    """Overwrite more bytes than any L2 cache holds."""
    if not _CACHE_BREAKER:
        _CACHE_BREAKER.append(torch.empty(256 << 20, dtype=torch.int8, device="cuda"))
    _CACHE_BREAKER[0].zero_()


def peak_bytes(call: Callable[[], Any], device: str = "cpu") -> int:
    """Most bytes that were allocated at one moment during `call`, above what was held before it.

    On CUDA this is the caching allocator's own peak; on CPU the allocations and releases that the profiler records.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as record:
        result = call()
        del result
    held = peak = 0
    for change in _allocations(record.profiler.kineto_results.experimental_event_tree()):
        held += change
        peak = max(peak, held)
    return peak


def _allocations(roots: list[Any]) -> list[int]:
    """Signed sizes of all allocator events below `roots`, in order of time."""
    events, stack = [], list(roots)
    while stack:
        event = stack.pop()
        stack.extend(event.children)
        if event.tag == torch._C._profiler._EventType.Allocation:
            events.append((event.start_time_ns, event.extra_fields.alloc_size))
    return [size for _, size in sorted(events, key=lambda pair: pair[0])]


def ceilings(device: str, dtypes: tuple[torch.dtype, ...]) -> Ceilings:
    """Measure copy bandwidth and matrix rates of `device` on random data."""
    moved, seconds = _copy_speed((1 << 30) if device == "cuda" else (1 << 25), device)
    rates = {}
    for dtype in dtypes:
        n = 8192 if device == "cuda" else 1024
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        spent = time_alternating({"matmul": partial(torch.matmul, a, b)}, device=device, budget_s=0.5)["matmul"].median
        rates[str(dtype).removeprefix("torch.")] = 2 * n**3 / spent
    return Ceilings(moved / seconds, rates)


def _copy_speed(elements: int, device: str) -> tuple[int, float]:
    """Bytes read plus written, and seconds, of one large fp32 copy."""
    source = torch.empty(elements, dtype=torch.float32, device=device).normal_()
    target = torch.empty_like(source)
    seconds = time_alternating({"copy": lambda: target.copy_(source)}, device=device, budget_s=0.5)["copy"].median
    return 2 * elements * source.element_size(), seconds
