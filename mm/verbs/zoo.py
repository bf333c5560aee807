"""`mm zoo`: the trained weights that ship, and whether they still score what they claim."""

from __future__ import annotations

from mm.command import FAILED, OK, CommandParser, emit_json, emit_table

ABOUT = {
    "list": "List the weights that ship, with their stated scores and how they were made.",
    "verify": "Re-evaluate shipped weights; exit code 1 if a score left its stated tolerance.",
}


def run(argv: list[str]) -> int:
    """List or verify shipped weights."""
    if argv and argv[0] in ABOUT:
        return _list(argv[1:]) if argv[0] == "list" else _verify(argv[1:])
    parser = CommandParser("zoo", about="The trained weights that ship.", example="mm zoo verify lavi_tiny")
    parser.epilog = "\n".join(f"{word:8} {about}" for word, about in ABOUT.items()) + f"\n\n{parser.epilog}"
    parser.add_argument("action", choices=list(ABOUT))
    parser.parse_args(argv)
    return OK


def _list(argv: list[str]) -> int:
    parser = CommandParser("zoo list", about=ABOUT["list"], example="mm zoo list", json_output=True)
    arguments = parser.parse_args(argv)
    from mm.zoo.verify import describe, shipped

    rows = [describe(folder) for folder in shipped()]
    if arguments.json:
        emit_json(rows)
    elif rows:
        emit_table([row | {"metrics": _brief(row["metrics"])} for row in rows])
    else:
        print("no trained weights ship with this installation")
    return OK


def _brief(metrics: dict[str, dict[str, float]]) -> str:
    return ", ".join(f"{name} {stated['value']:.4g}" for name, stated in metrics.items())


def _verify(argv: list[str]) -> int:
    parser = CommandParser("zoo verify", about=ABOUT["verify"], example="mm zoo verify lavi_tiny", json_output=True)
    parser.add_argument("names", nargs="*", metavar="NAME", help="shipped names (default: all)")
    arguments = parser.parse_args(argv)
    from mm.zoo.verify import shipped, verify

    folders = shipped(arguments.names)
    rows = [row for folder in folders for row in verify(folder)]
    if arguments.json:
        emit_json(rows)
    elif rows:
        emit_table(rows)
    else:
        print("no trained weights ship with this installation")
    return OK if all(row["ok"] for row in rows) else FAILED
