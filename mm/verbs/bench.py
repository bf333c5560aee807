"""`mm bench`: rows that every system contributes, as a table or JSON."""

from __future__ import annotations

from argparse import ArgumentTypeError
from typing import Any

from mm.catalog import BENCH_FLOPS, BENCH_LATENCY
from mm.command import OK, CommandParser, UsageError, emit_json, emit_table

BENCHES = {"flops": BENCH_FLOPS, "latency": BENCH_LATENCY}
ABOUT = {
    "flops": "Count the FLOPs of a system at full size, without its weights or memory.",
    "latency": "Time a system against its strongest plain alternative; candidates take turns in one run.",
    "kernels": "Time the kernels of this toolkit against the best existing path.",
}


def run(argv: list[str]) -> int:
    """Run the benchmark rows of one system or of all."""
    parser = CommandParser("bench", about="Measure.", example="mm bench flops --system lavi --json")
    parser.epilog = "\n".join(f"{kind:8} {about}" for kind, about in ABOUT.items()) + f"\n\n{parser.epilog}"
    parser.add_argument("kind", choices=list(ABOUT))
    if not argv or argv[0] not in ABOUT:
        parser.parse_args(argv)  # help, or a usage error
        raise UsageError("the kind of benchmark comes first: mm bench flops|latency|kernels")
    kind = argv[0]
    if kind == "kernels":
        from mm.kernels.bench import main as kernels

        return kernels(argv[1:])
    arguments = _parser(kind).parse_args(argv[1:])
    names = _selected(kind, arguments.system)
    options = {} if kind == "flops" else {"device": arguments.device, "repeats": arguments.repeats}
    rows = [{"system": name, **row} for name in names for row in BENCHES[kind].get(name)(**options)]
    if arguments.json:
        emit_json(rows)
    else:
        emit_table(rows, title=f"mm bench {kind}")
    return OK


def _parser(kind: str) -> CommandParser:
    parser = CommandParser(
        f"bench {kind}", about=ABOUT[kind], example=f"mm bench {kind} --system lavi --json", json_output=True
    )
    parser.add_argument(
        "--system", default="all", help=f"one of {', '.join(BENCHES[kind]) or '(none yet)'}; default: all"
    )
    if kind != "flops":
        parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
        parser.add_argument("--repeats", type=_positive, default=30, help="samples per candidate (default: 30)")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def _selected(kind: str, system: str) -> list[str]:
    """Names of the systems to run.

    Raises:
        ValueError: the system has no such benchmark, or none has.
    """
    registry: Any = BENCHES[kind]
    if system != "all":
        registry.path(system)
        return [system]
    if not registry:
        raise ValueError(f"no system offers a {kind} benchmark in this installation")
    return list(registry)
