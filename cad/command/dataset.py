"""`mm cad dataset`: a folder of DeepCAD files becomes a LLaVA training set with pictures."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import Any

from mm.command import FAILED, OK, CommandParser, emit_json, emit_table, progress_wanted

EXAMPLE = "mm cad dataset deepcad/ -o out/set --pictures all --step --workers 2"


def run(argv: list[str]) -> int:
    """Run `mm cad dataset`."""
    parser = CommandParser(
        "cad dataset",
        about="Convert a folder of DeepCAD JSON files into a training set: programs, pictures, LLaVA records. Bad "
        "parts are recorded and passed over; the same command goes on after a kill.",
        example=EXAMPLE,
        json_output=True,
    )
    parser.add_argument("folder", metavar="FOLDER", help="folder with *.json, at any depth")
    parser.add_argument("-o", "--out", required=True, help="folder to fill")
    parser.add_argument("--kernel", choices=("occ", "mesh"), default="occ", help="occ: exact (default); mesh: quick")
    parser.add_argument("--references", choices=("official", "improved"), default="official", help="plane references")
    parser.add_argument("--text", choices=("official", "canonical"), default="official", help="style of the programs")
    parser.add_argument("--pictures", choices=("mix", "all"), default="mix", help="one picture per part, or all styles")
    parser.add_argument("--size", type=_size, default=(640, 480), metavar="WxH", help="pixels (default: 640x480)")
    parser.add_argument("--step", action="store_true", help="also write STEP files")
    parser.add_argument("--max-characters", type=int, default=0, help="leave out longer programs (default: none)")
    parser.add_argument("--seconds", type=float, default=30.0, help="longest kernel call (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="of styles and views")
    parser.add_argument("--workers", type=int, default=1, help="parts at the same time (default: 1)")
    parser.add_argument("--times", action="store_true", help="print the time of every part")
    arguments = parser.parse_args(argv)

    from mm.cad.dataset import DatasetConfig, make_dataset

    if arguments.step and arguments.kernel == "mesh":
        raise ValueError("--step needs the exact kernel: leave out --kernel mesh")
    names = ("kernel", "references", "text", "pictures", "size", "step", "max_characters", "seconds", "seed")
    config = DatasetConfig(**{name: getattr(arguments, name) for name in names})
    rows: list[dict[str, Any]] = []

    def progress(record: dict[str, Any], done: int, total: int) -> None:
        rows.append({key: record.get(key) for key in ("id", "status", "extrudes", "characters", "seconds")})
        if progress_wanted():
            print(f"\r{done}/{total} parts", end="" if done < total else "\n", file=sys.stderr)

    report = make_dataset(arguments.folder, arguments.out, config, workers=arguments.workers, progress=progress)
    if arguments.json:
        emit_json(asdict(report) | ({"times": rows} if arguments.times else {}))
    else:
        if arguments.times:
            emit_table(rows, title="time per part, seconds")
        emit_table([{"status": status, "parts": count} for status, count in sorted(report.statuses.items())])
        print(f"{report.samples} samples in {arguments.out}/train.json; {report.skipped} parts were done before")
    return OK if report.samples else FAILED


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) >= 8 and int(height) >= 8):
        raise argparse.ArgumentTypeError(f"must look like 640x480, at least 8x8, got {text}")
    return int(width), int(height)
