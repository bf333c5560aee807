"""`mm bench kernels`: every kernel against what a user would write instead, in one run on one machine.

A module of `mm/kernels/cases/` describes the contests of one kernel as a function `cases() -> list[Case]`; this file
runs them and prints one Markdown table. Shares are of ceilings measured in the same run; a missed target says so.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import Any

import torch

from mm.kernels.measure import Ceilings, Timing, ceilings, peak_bytes, time_alternating

CASE_MODULES: dict[str, str] = {
    "window_attention_3d": "mm.kernels.cases.window_attention",
    "attention": "mm.kernels.cases.masked_attention",
    "local_contrastive_similarity": "mm.kernels.cases.contrastive",
    "nearest_code": "mm.kernels.cases.code_search",
    "attention_with_scores": "mm.kernels.cases.scored_attention",
    "modulated_norm": "mm.kernels.cases.norm",
}
"""Kernel -> module with `cases()`; what is listed here is what `mm bench kernels` runs."""

OURS = "ours"


@dataclass(frozen=True, kw_only=True)
class Contest:
    """The candidates of one case, on tensors that exist."""

    ours: Callable[[], Any]
    """Our kernel, no arguments."""
    peers: Mapping[str, Callable[[], Any]]
    """Label -> the same function written another way."""
    bytes: float
    """Fewest bytes that must move: each input read once, each output written once."""
    flops: float
    """Floating-point operations of the function itself."""
    matmul: str = "float32"
    """Which matmul ceiling applies: "float32", "float16" or "bfloat16"."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A promise: `limit` on time or memory, relative to `peer` or to a ceiling.

    Kinds: "speedup" (peer time / our time, at least), "overhead" (our time / peer time - 1, at most), "memory" (our
    peak / peer peak, at most), "bandwidth" (share of the copy ceiling, at least).
    """

    kind: str
    limit: float
    peer: str = ""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kernel at one real shape."""

    kernel: str
    shape: str
    build: Callable[[str], Contest]
    """Makes the tensors on a device ("cpu" or "cuda") and returns the candidates."""
    devices: tuple[str, ...] = ("cpu", "cuda")
    targets: Mapping[str, tuple[Target, ...]] = field(default_factory=dict)
    """Device -> promises."""


@dataclass(frozen=True)
class Row:
    """One measured candidate."""

    kernel: str
    shape: str
    device: str
    candidate: str
    seconds: Timing
    gbytes_per_s: float
    tflops_per_s: float
    roofline_share: float
    """Least possible time at the measured ceilings over measured time."""
    peak_mbytes: float
    verdict: str
    """Targets of our rows: met or missed, with the figure."""


def run_case(case: Case, device: str, roof: Ceilings, budget_s: float = 2.0) -> list[Row]:
    """Measure all candidates of one case; a peer that fails here is left out and named beside our row."""
    contest = case.build(device)
    peaks = {OURS: peak_bytes(contest.ours, device)}
    candidates, failed = {OURS: contest.ours}, []
    for label, call in contest.peers.items():
        try:
            call()  # pays for compilation
            peaks[label] = peak_bytes(call, device)
            candidates[label] = call
        except Exception as error:  # a peer is other people's code: whatever it raises is its result
            failed.append(f"{label} does not run here ({type(error).__name__})")
    times = time_alternating(candidates, device=device, budget_s=budget_s)
    least = max(contest.bytes / roof.bytes_per_s, contest.flops / roof.flops_per_s[contest.matmul])
    rows = []
    for label, seconds in times.items():
        share = contest.bytes / seconds.median / roof.bytes_per_s
        verdict = ""
        if label == OURS:
            verdict = "; ".join([*_verdicts(case.targets.get(device, ()), times, peaks, share), *failed])
        rows.append(
            Row(
                case.kernel,
                case.shape,
                device,
                label,
                seconds,
                contest.bytes / seconds.median / 1e9,
                contest.flops / seconds.median / 1e12,
                least / seconds.median,
                peaks[label] / 2**20,
                verdict,
            )
        )
    return rows


def _verdicts(
    targets: Sequence[Target], times: Mapping[str, Timing], peaks: Mapping[str, int], share: float
) -> list[str]:
    """Each target with its figure: "met: 3.4x of 3x over cdist"."""
    parts = []
    for target in targets:
        if target.peer and target.peer not in times:
            parts.append(f"no figure against {target.peer}")
            continue
        peer = times[target.peer].median if target.peer else 0.0
        if target.kind == "speedup":
            value = peer / times[OURS].median
            met, text = value >= target.limit, f"{value:.2f}x (at least {target.limit:g}x) vs {target.peer}"
        elif target.kind == "overhead":
            value = times[OURS].median / peer - 1
            met, text = value <= target.limit, f"{value:+.1%} (at most {target.limit:+.0%}) vs {target.peer}"
        elif target.kind == "memory":
            value = peaks[OURS] / max(1, peaks[target.peer])
            met, text = value <= target.limit, f"memory {value:.3f} (at most {target.limit:g}) of {target.peer}"
        else:
            met, text = share >= target.limit, f"{share:.0%} (at least {target.limit:.0%}) of copy bandwidth"
        parts.append(("met: " if met else "MISSED: ") + text)
    return parts


def run(device: str, kernels: Sequence[str] = (), budget_s: float = 2.0) -> tuple[list[Row], Ceilings]:
    """All rows of the chosen kernels (all if none is named) on one device, and the ceilings of the run."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16) if device == "cuda" else (torch.float32, torch.bfloat16)
    roof = ceilings(device, dtypes)
    rows = []
    for kernel, module in CASE_MODULES.items():
        if kernels and kernel not in kernels:
            continue
        for case in import_module(module).cases():
            if device in case.devices:
                rows += run_case(case, device, roof, budget_s)
                gc.collect()
                if device == "cuda":
                    torch.cuda.empty_cache()
    return rows, roof


def environment(device: str, roof: Ceilings) -> dict[str, Any]:
    """What a reader needs to judge the numbers."""
    processor = f"{platform.machine()} processor, {torch.get_num_threads()} threads"
    return {
        "device": device,
        "hardware": torch.cuda.get_device_name() if device == "cuda" else processor,
        "torch": torch.__version__,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "copy_gbytes_per_s": roof.bytes_per_s / 1e9,
        "matmul_tflops_per_s": {dtype: rate / 1e12 for dtype, rate in roof.flops_per_s.items()},
    }


def table(rows: Sequence[Row], facts: Mapping[str, Any]) -> str:
    """Markdown: a header that says where the numbers come from, then one line per candidate."""
    rates = ", ".join(f"{dtype} {rate:.3g}" for dtype, rate in facts["matmul_tflops_per_s"].items())
    lines = [
        f"Device: {facts['hardware']}, torch {facts['torch']}, TF32 {'on' if facts['tf32'] else 'off'}. "
        f"Ceilings of this run: copy {facts['copy_gbytes_per_s']:.0f} GB/s, matmul {rates} TFLOP/s."
    ]
    if facts["device"] != "cuda":
        lines.append("No GPU was used: GPU rows are left out.")
    lines += [
        "",
        "| kernel | shape | candidate | median ms | p20-p80 ms | GB/s | TFLOP/s | of roofline | peak MiB | targets |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        t = row.seconds
        lines.append(
            f"| {row.kernel} | {row.shape} | {row.candidate} "
            f"| {t.median * 1e3:.3f} | {t.p20 * 1e3:.3f}-{t.p80 * 1e3:.3f} | {row.gbytes_per_s:.1f} "
            f"| {row.tflops_per_s:.3g} | {row.roofline_share:.0%} | {row.peak_mbytes:.1f} | {row.verdict} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `mm bench kernels`."""
    parser = argparse.ArgumentParser(
        prog="mm bench kernels",
        description="Time every kernel against its peers and print one table.",
        epilog="example: mm bench kernels --device cpu --kernel nearest_code",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    parser.add_argument("--kernel", action="append", default=[], help="only this kernel (may be repeated)")
    parser.add_argument("--budget", type=float, default=2.0, metavar="SECONDS", help="time per candidate (default 2)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    options = parser.parse_args(argv)
    for kernel in options.kernel:
        if kernel not in CASE_MODULES:
            parser.error(f"unknown kernel {kernel!r}; choose {', '.join(CASE_MODULES)}")
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        parser.exit(1, "no CUDA device is available; run `mm bench kernels --device cpu`\n")
    rows, roof = run(device, options.kernel, options.budget)
    facts = environment(device, roof)
    plain = {"environment": facts, "rows": [asdict(row) for row in rows]}
    print(json.dumps(plain) if options.json else table(rows, facts))
    return 0
