"""`mm cad`: programs, parts and pictures on the command line. One file per subcommand."""

from __future__ import annotations

from importlib import import_module

from mm.command import OK, CommandParser, UsageError

SUBCOMMANDS = {
    "build": "a program becomes a solid: STEP, STL, GLB, pictures",
    "convert": "between DeepCAD files, OpenECAD text and scripts of other CAD programs",
    "dataset": "a folder of DeepCAD files becomes a training set with pictures",
    "generate": "a picture becomes a program, a solid and a drawing to compare",
    "score": "predicted programs or parts against the true ones",
}
"""Word after `mm cad` -> its line in `mm cad --help`; `mm.cad.command.<word>:run(argv)` does the work."""


def run(argv: list[str]) -> int:
    """Run `mm cad`."""
    if argv and argv[0] in SUBCOMMANDS:
        return import_module(f"mm.cad.command.{argv[0]}").run(argv[1:])
    if argv and not argv[0].startswith("-"):
        raise UsageError(f"mm cad has no {argv[0]!r}; choose one of {', '.join(SUBCOMMANDS)}")
    about = "\n".join(f"mm cad {name:<10} {line}" for name, line in SUBCOMMANDS.items())
    parser = CommandParser("cad", about=about, example="mm cad convert part.json -o part.py")
    if not argv:
        parser.print_help()
        return OK
    parser.parse_args(argv)
    return OK
