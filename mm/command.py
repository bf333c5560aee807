"""What every `mm` command shares: its parser, its output and the way an error reaches the user.

Exit codes: 0 done, 1 the input is wrong or the work failed (one line on stderr), 2 the command line itself is wrong,
130 interrupted. A traceback appears only with `--debug`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TextIO

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


class UsageError(Exception):
    """The command line itself is wrong: exit code 2."""


class CommandParser(argparse.ArgumentParser):
    """`argparse` with the parts that no command may forget.

    Args:
        verb: Words after `mm`, for instance "zoo verify".
        about: What the command does, in one sentence.
        example: A complete command line; shown by `--help`.
        json_output: Offer `--json`.

    Example:
        >>> parser = CommandParser("models", about="List presets.", example="mm models 'lavi*'", json_output=True)
        >>> parser.parse_args(["--json"]).json
        True
    """

    def __init__(self, verb: str, *, about: str, example: str, json_output: bool = False, **kwargs: Any) -> None:
        super().__init__(
            prog=f"mm {verb}",
            description=about,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **kwargs,
        )
        # `run_command` takes --debug out of the arguments before a command sees them; this entry documents it.
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if json_output:
            self.add_argument("--json", action="store_true", help="print the result as one JSON document")


def run_command(run: Callable[[list[str]], int], argv: Sequence[str]) -> int:
    """Call a command and turn whatever happens into an exit code and at most one line on stderr.

    Args:
        run: The command; takes its arguments, returns an exit code.
        argv: Arguments after the verb; `--debug` among them is taken out.
    """
    arguments, debug = take_flag(argv, "--debug")
    try:
        code = run(arguments)
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # argparse: --help gives 0, a usage error 2
        return stop.code if isinstance(stop.code, int) else USAGE if stop.code else OK
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone (`mm models | head`): nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except UsageError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return USAGE
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(f"error: {explain(error)}", file=sys.stderr)
        return FAILED


def explain(error: Exception) -> str:
    """One line for the user; what is not the user's doing says how to see more."""
    if isinstance(error, ValueError | OSError | ImportError):
        return one_line(error)
    return f"unexpected {type(error).__name__}: {one_line(error)}; --debug shows the traceback"


def take_flag(argv: Sequence[str], flag: str) -> tuple[list[str], bool]:
    """Remove every `flag` that stands before a lone `--`.

    Example:
        >>> take_flag(["a.png", "--debug", "--", "--debug"], "--debug")
        (['a.png', '--', '--debug'], True)
    """
    end = argv.index("--") if "--" in argv else len(argv)
    kept = [word for word in argv[:end] if word != flag]
    return [*kept, *argv[end:]], len(kept) < end


def one_line(error: BaseException) -> str:
    """Message of an error without line breaks; an operating-system error names its file."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.filename}: {error.strerror}"
    return text or type(error).__name__


def emit_json(data: Any, stream: TextIO | None = None) -> None:
    """Print plain data as one indented JSON document."""
    print(json.dumps(data, indent=2, allow_nan=True), file=stream or sys.stdout)


def emit_table(rows: Sequence[dict[str, Any]], title: str = "") -> None:
    """Print rows as a table; columns are the keys in order of first appearance, floats get four digits."""
    from rich.console import Console
    from rich.table import Table

    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(title=title or None)
    for column in columns:
        numeric = any(isinstance(row.get(column), int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    # A pipe has no width of its own: never fold rows that another program reads.
    console = Console(width=None if sys.stdout.isatty() else 400, markup=False)
    with console.capture() as capture:  # printed by us: rich leaves the program when a pipe closes
        console.print(table)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def progress_wanted() -> bool:
    """Progress bars appear only where a person looks: stderr is a terminal."""
    return sys.stderr.isatty()


def positive(text: str) -> int:
    """Option value: a whole number from 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def progress(about: str, total: int) -> Callable[[Iterable[Any]], Iterable[Any]]:
    """A bar on stderr while something is iterated, where a person looks."""

    def wrap(items: Iterable[Any]) -> Iterable[Any]:
        from rich.console import Console
        from rich.progress import track

        if not progress_wanted():
            return items
        return track(items, description=about, total=total or None, console=Console(stderr=True), transient=True)

    return wrap


def share() -> tuple[int, int]:
    """Number of this process and how many there are, as torchrun or SLURM tell; (0, 1) alone.

    Raises:
        ValueError: the variables are there but no numbers.
    """
    for rank, world in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if rank in os.environ and world in os.environ:
            try:
                return int(os.environ[rank]), int(os.environ[world])
            except ValueError as error:
                raise ValueError(f"{rank} and {world} must be numbers: {error}; or use --rank and --world") from error
    return 0, 1


def own_device(device: str) -> str:
    """ "cuda" becomes the GPU of this process on its machine."""
    local = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID"))
    return f"cuda:{local}" if device == "cuda" and local is not None else device


def configure_logging() -> None:
    """Send the log lines of this toolkit to stderr, as plain sentences."""
    logger = logging.getLogger("mm")
    if not logger.handlers:
        logger.addHandler(_Stderr())
        logger.setLevel(logging.INFO)


class _Stderr(logging.Handler):
    """Writes to whatever `sys.stderr` is at that moment: a caller may replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)
