"""`mm medical index`: vectors of a folder of scans and their reports, to search in."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mm.command import FAILED, OK, CommandParser, UsageError, emit_json
from mm.medical.command.cases import add_model, load_model, progress
from mm.medical.command.source import add_reading, load
from mm.medical.tasks.cases import ScanCase, find_cases
from mm.medical.volumes.volume import Volume

ABOUT = """Build an index over a folder of scans, or go on with one that was stopped. A report is the text file beside
a scan (NAME.txt for NAME.nii.gz), or a row of --reports. Names of files and persons are not stored; reports lose
header fields, dates and numbers that identify."""


def run(argv: list[str]) -> int:
    """Run `mm medical index`."""
    parser = CommandParser("medical index", about=ABOUT, example="mm medical index scans/", json_output=True)
    parser.add_argument("scan", metavar="FOLDER", help="scans: NIfTI files, zip archives, folders of DICOM files")
    add_reading(parser)
    add_model(parser)
    parser.add_argument(
        "--out",
        default="scans.index",
        metavar="FOLDER",
        help="the index; an older one is continued (default: scans.index)",
    )
    parser.add_argument("--reports", metavar="CSV", help="table with the columns scan (or image) and report")
    parser.add_argument("--window", help="intensity window (default: -175..250 HU)")
    parser.add_argument("--shard", type=int, default=16, help="scans per file; a killed run loses at most these")
    parser.add_argument(
        "--keep-names", action="store_true", help="store the places of files, so that hits name them (may be private)"
    )
    parser.add_argument("--parquet", metavar="FILE", help="also write where each scan lies as a Parquet table")
    arguments = parser.parse_args(argv)
    if arguments.shard < 1:
        raise UsageError(f"--shard must be at least 1, got {arguments.shard}")

    from mm.medical.tasks.index import IndexBuilder, ScanIndex, ScanItem
    from mm.medical.volumes.windows import window_named

    if arguments.window:
        window_named(arguments.window)
    root = Path(arguments.scan)
    cases = find_cases(root)
    reports = report_table(arguments.reports, root) if arguments.reports else {}

    def item(case: ScanCase) -> ScanItem:
        place = "." if case.path == root else case.path.relative_to(root).as_posix()
        read: Callable[[], Volume] = partial(load, arguments, str(case.path))
        try:
            report = reports.get(case.path.resolve()) or case.report()
        except ValueError as error:  # this scan is reported as failed, the others go on
            read, report = partial(_refuse, error), ""
        return ScanItem(place=place, read=read, stamp=stamp(case), report=report)

    builder = IndexBuilder(
        load_model(arguments),
        arguments.out,
        [item(case) for case in cases],
        window=arguments.window,
        keep_names=arguments.keep_names,
        shard_items=arguments.shard,
    )
    there = len(cases) - len(builder)
    for _ in progress(builder.run(), "scans", len(builder)):
        pass
    index = ScanIndex(arguments.out)
    if arguments.parquet:
        index.cache.write_parquet(arguments.parquet)
    return told(arguments.json, index, there)


def told(as_json: bool, index: Any, there: int) -> int:
    """Say what the index holds; 1 if a scan failed."""
    reports = sum(bool(entry.report) for entry in index.entries)
    failed = {entry.key: entry.error for entry in index.failed}
    if as_json:
        emit_json({"scans": len(index), "reports": reports, "computed_before": there, "failed": failed})
    else:
        for key, why in failed.items():
            print(f"{key} failed: {why}")
        print(f"{len(index)} scans, {reports} with a report, {there} were there before, {len(failed)} failed")
    return FAILED if failed else OK


def _refuse(error: ValueError) -> Volume:
    raise error


def stamp(case: ScanCase) -> str:
    """Changes when a file of the scan, or its report, does."""
    path = case.path
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    files += [case.report_path] if case.report_path else []
    return ";".join(f"{one.name}:{one.stat().st_size}:{one.stat().st_mtime_ns}" for one in files)


def report_table(path: str, root: Path) -> dict[Path, str]:
    """Scan -> report from a table; scans are looked for in the folder of the scans, then beside the table.

    Raises:
        FileNotFoundError: no table, or a scan of it is missing.
        ValueError: a column is missing.
    """
    from mm.medical.own_scans import read_table

    return {record.image: record.report for record in read_table(path, root)}
