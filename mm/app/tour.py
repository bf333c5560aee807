"""`mm tour`: run every shipped system once on this machine and write one self-contained page.

A system adds its section by registering `f(page)` in `mm.catalog.TOUR`.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from pathlib import Path

import mm
from mm.catalog import TOUR
from mm.command import OK, CommandParser, emit_json, one_line

ABOUT = (
    "Each figure below was produced by the run that wrote this page, on this machine, with the small demonstration "
    "weights that ship with the package. They show how the methods behave; they are not the authors' models."
)


def main(argv: list[str]) -> int:
    """Run the tour."""
    parser = CommandParser(
        "tour",
        about="Run the shipped systems and write one HTML page with pictures, tables and curves.",
        example="mm tour --out out/tour",
        json_output=True,
    )
    parser.add_argument("--out", type=Path, default=Path("out/tour"), help="folder to write (default: out/tour)")
    parser.add_argument("--only", nargs="+", metavar="PAGE", help=f"pages to run (default: all of {', '.join(TOUR)})")
    parser.add_argument("--seed", type=int, default=0, help="seed of the held-out pictures (default: 0)")
    arguments = parser.parse_args(argv)
    path, numbers = run(arguments.out, only=arguments.only, seed=arguments.seed)
    if arguments.json:
        emit_json({"page": str(path), "numbers": numbers})
    else:
        print(f"open {path}")
    return OK


def run(folder: Path, *, only: list[str] | None = None, seed: int = 0) -> tuple[Path, dict[str, object]]:
    """Run the pages one after the other; each prints a line when it is done.

    Raises:
        ValueError: an unknown page name.
    """
    from mm.app.report import Page, write_report

    names = only or TOUR.in_order()
    writers = [(name, TOUR.get(name)) for name in names]
    pages = []
    start = time.perf_counter()
    for number, (name, writer) in enumerate(writers, 1):
        print(f"[{number}/{len(writers)}] {name}: {TOUR.about(name)} …", file=sys.stderr, flush=True)
        begun = time.perf_counter()
        page = Page(name, TOUR.about(name), seed=seed)
        try:
            writer(page)
        except ImportError as error:  # an extra is not installed: the other pages still tell their story
            page = Page(name, TOUR.about(name), seed=seed)
            page.text(f"This page was not run: {one_line(error)}")
        pages.append(page)
        print(f"[{number}/{len(writers)}] {name}: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    footer = f"mm {mm.__version__}, {machine()}, seed {seed}, {time.perf_counter() - start:.0f} s"
    path = write_report(folder, "A tour of the toolkit", pages, about=ABOUT, footer=footer)
    return path, {page.name: page.numbers for page in pages}


def machine() -> str:
    """Processor, cores and library version, for the foot of a page."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    threads = f"{torch.get_num_threads()} threads"
    return f"{platform.machine()} {platform.system()}, {device}, torch {torch.__version__}, {threads}"
