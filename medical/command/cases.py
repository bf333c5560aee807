"""What the commands that write a folder per case share: finding scans, skipping finished ones, counting failures."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mm.checkpoint import read_json
from mm.command import FAILED, OK, CommandParser, emit_json, emit_table, one_line, progress_wanted
from mm.medical.tasks.cases import ScanCase, find_cases

RESULT_FILE, PAGE_FILE = "result.json", "case.html"


def add_output(parser: CommandParser, *, default: str | None = None) -> None:
    """Where results go; without a default nothing is written unless asked for."""
    stated = f" (default: {default})" if default else ""
    parser.add_argument(
        "--out",
        default=default,
        metavar="FOLDER",
        help=f"one folder per case is written there, named by a hash{stated}",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="compute finished cases again (default: they are left as they are)"
    )


def run_cases(
    arguments: argparse.Namespace,
    settings: dict[str, Any],
    work: Callable[[ScanCase, Path | None], dict[str, Any]],
    row: Callable[[dict[str, Any]], dict[str, Any]],
) -> int:
    """Work on every scan of `arguments.scan`; a scan that can't be used is reported and the others go on.

    Args:
        arguments: With scan, out, overwrite, json.
        settings: What the result depends on; kept in `result.json`, and compared before a finished case is skipped.
        work: Computes one case into its folder (None: nothing is written) and returns what `result.json` holds.
        row: From that to a line of the table.

    Returns:
        Exit code: 1 if a scan failed.

    Raises:
        ValueError: a finished case was made with other settings.
    """
    cases = find_cases(arguments.scan)
    folders = {case.key: Path(arguments.out) / case.key if arguments.out else None for case in cases}
    finished = {
        key: None if folder is None or arguments.overwrite else _finished(folder, settings)
        for key, folder in folders.items()
    }
    rows, failed, done = [], {}, []
    for case in progress(cases, "cases", len(cases)):
        result = finished[case.key]
        try:
            state = "done before" if result else "done"
            result = result or work(case, folders[case.key])
        except (ValueError, FileNotFoundError) as error:
            if len(cases) == 1:
                raise
            failed[case.key] = one_line(error)
            continue
        done.append({"case": case.key, "state": state, **result})
        rows.append({"case": case.key, "state": state, **row(result)})
    if arguments.json:
        emit_json({"cases": done, "failed": failed})
    else:
        if rows:
            emit_table(rows)
        for key, message in failed.items():
            print(f"{key} failed: {message}")
        where = f"; see {Path(arguments.out) / 'CASE' / PAGE_FILE}" if arguments.out and rows else ""
        print(f"{len(rows)} cases done, {len(failed)} failed{where}")
    return FAILED if failed else OK


def _finished(folder: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Result of a finished case, or None if there is none."""
    if not (folder / RESULT_FILE).is_file():
        if folder.exists():
            raise ValueError(
                f"case {folder.name} is there without a {RESULT_FILE}: choose another --out, or use --overwrite"
            )
        return None
    result = read_json(folder / RESULT_FILE)
    if result.get("made_with") != settings:
        raise ValueError(
            f"case {folder.name} was made with other settings ({_differing(result.get('made_with'), settings)}): "
            "choose another --out, or use --overwrite"
        )
    return result


def _differing(stored: Any, wanted: dict[str, Any]) -> str:
    """What differs, in words."""
    if not isinstance(stored, dict):
        return "none are stated"
    names = [name for name in {**stored, **wanted} if stored.get(name) != wanted.get(name)]
    return "; ".join(f"{name}: {stored.get(name)!r} there, {wanted.get(name)!r} now" for name in names)


def progress(items: Iterable[Any], what: str, total: int) -> Iterator[Any]:
    """The items, with a progress bar where a person looks and there is more than one."""
    if total < 2 or not progress_wanted():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, description=what, total=total, console=Console(stderr=True))


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A spinner on a terminal for a step of unknown length."""
    if not progress_wanted():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def load_model(arguments: argparse.Namespace) -> Any:
    """The VELVET-Med model that `--model` names, with the parts that further options name.

    Raises:
        ValueError: another kind of model.
    """
    from mm.checkpoint import load
    from mm.medical.velvet.model import VelvetModel

    model = load(arguments.model, device=arguments.device)
    if not isinstance(model, VelvetModel):
        raise ValueError(f"--model holds a {type(model).__name__}, not a VelvetModel")
    return model


def add_model(parser: CommandParser) -> None:
    """Which model, and where it runs."""
    parser.add_argument(
        "--model", default="velvet_tiny", help="model folder, shipped name or hub id (default: velvet_tiny)"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda")


def new_folder(arguments: argparse.Namespace) -> Path | None:
    """Where `--out` leads, once it is known that nothing is lost there.

    Raises:
        ValueError: something is there and `--overwrite` was not given.
    """
    if arguments.out is None:
        return None
    out = Path(arguments.out)
    if out.exists() and not arguments.overwrite:
        raise ValueError("--out is there already: choose another folder, or use --overwrite")
    return out
