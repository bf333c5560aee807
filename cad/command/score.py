"""`mm cad score`: predictions against references, every score of the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mm.command import OK, CommandParser, emit_json, emit_table

PROGRAMS = (".py", ".txt")
SOLIDS = (".step", ".stp", ".brep", ".stl", ".obj", ".ply", ".off", ".glb")


def run(argv: list[str]) -> int:
    """Run `mm cad score`."""
    parser = CommandParser(
        "cad score",
        about="Compare predicted programs (.py, .txt) or parts (.step, .stl, ...) with the true ones: two files, or "
        "two folders whose files have the same names before the first dot. A missing prediction counts as invalid.",
        example="mm cad score predicted/ reference/",
        json_output=True,
    )
    parser.add_argument("predicted", metavar="PREDICTED", help="file or folder")
    parser.add_argument("reference", metavar="REFERENCE", help="file or folder")
    parser.add_argument("--kernel", choices=("occ", "mesh"), default="mesh", help="mesh: quick (default); occ: exact")
    parser.add_argument("--seconds", type=float, default=3.0, help="time per program (default: 3)")
    arguments = parser.parse_args(argv)

    from mm.cad.kernel import Limits
    from mm.cad.metrics import score

    limits = Limits(seconds=arguments.seconds, cpu_seconds=arguments.seconds)
    predicted, reference = Path(arguments.predicted), Path(arguments.reference)
    if reference.is_dir():
        found, true = files_of(predicted), files_of(reference)
        pair: tuple[Any, Any] = ([read(found.get(name)) for name in true], [read(path) for path in true.values()])
    else:
        pair = read(predicted), read(reference)
    result = score(*pair, kernel=arguments.kernel, limits=limits)
    if arguments.json:
        emit_json(result)
    else:
        emit_table([{"score": name, "value": value} for name, value in result.items()])
    return OK


def files_of(folder: Path) -> dict[str, Path]:
    """Name before the first dot -> file, sorted.

    Raises:
        FileNotFoundError: no such folder, or nothing readable in it.
        ValueError: two files of one name.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in (*PROGRAMS, *SOLIDS):
            continue
        name = path.name.partition(".")[0]
        if name in found:
            raise ValueError(f"{folder}: {found[name].name} and {path.name} have one name; leave one of them")
        found[name] = path
    if not found:
        raise FileNotFoundError(f"{folder}: no file with an ending of {', '.join((*PROGRAMS, *SOLIDS))}")
    return found


def read(path: Path | None) -> Any:
    """Text of a program or the solid in a file; None stays None."""
    if path is None:
        return None
    if path.suffix.lower() in SOLIDS:
        from mm.cad.kernel import load_solid

        return load_solid(path)
    from mm.cad.command.build import read_program

    return read_program(str(path))
