"""`mm cad convert`: DeepCAD files, OpenECAD text and scripts of other CAD systems, one into another."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mm.cad.deepcad import to_deepcad
from mm.cad.emitter import emit
from mm.cad.files import load_program, write_h5
from mm.cad.program import Program
from mm.cad.scripts import export_text
from mm.cad.validation import validate
from mm.command import FAILED, OK, CommandParser, UsageError, emit_json

ENDINGS = {
    "openecad": ".py",
    "canonical": ".py",
    "deepcad": ".json",
    "vector": ".json",
    "h5": ".h5",
    "cadquery": ".py",
    "build123d": ".py",
    "freecad": ".FCMacro",
    "openscad": ".scad",
}
"""What --to offers, and the ending of its files."""


def run(argv: list[str]) -> int:
    """Run `mm cad convert`."""
    parser = CommandParser(
        "cad convert",
        about="Read DeepCAD JSON or h5 or OpenECAD text (version 1 or 2) and write any of the forms of --to.",
        example="mm cad convert part.json -o part.py\n  mm cad convert part.py --to build123d -o script.py\n"
        "  mm cad convert parts/*.json --to canonical -o texts/",
        json_output=True,
    )
    parser.add_argument("inputs", nargs="+", metavar="FILE", help=".json, .h5 or text")
    parser.add_argument(
        "-o", "--out", metavar="PATH", help="file, or folder for several inputs (default: the terminal)"
    )
    parser.add_argument("--to", choices=ENDINGS, help="form to write (default: by the ending of --out, else openecad)")
    parser.add_argument("--references", choices=("official", "improved"), default="official",
                        help="how sketch planes of DeepCAD files are tied to earlier features")  # fmt: skip
    parser.add_argument("--frames", choices=("exact", "legacy"), default="exact",
                        help="legacy repeats the wrong frames of the published converter")  # fmt: skip
    arguments = parser.parse_args(argv)
    out = Path(arguments.out) if arguments.out else None
    form = arguments.to or _form(out)
    if len(arguments.inputs) > 1 and (out is None or (out.exists() and not out.is_dir())):
        raise UsageError("several inputs need a folder for -o")
    if form == "h5" and out is None:
        raise UsageError("h5 needs a file for -o")

    rows, failed = [], 0
    for name in arguments.inputs:
        try:
            program = load_program(name, references=arguments.references, frames=arguments.frames)
            target = _target(out, Path(name), form, many=len(arguments.inputs) > 1)
            _write(program, form, target, quiet=arguments.json)
            findings = [str(finding) for finding in validate(program)]
            rows.append({"input": name, "output": target and str(target), "extrudes": len(program.extrudes),
                         "findings": findings})  # fmt: skip
            for finding in findings:
                print(f"{name}: {finding}", file=sys.stderr)
        except (ValueError, OSError) as error:
            if len(arguments.inputs) == 1:
                raise
            failed += 1
            rows.append({"input": name, "error": str(error)})
            print(f"error: {error}", file=sys.stderr)
    if arguments.json:
        emit_json(rows)
    elif len(arguments.inputs) > 1:
        print(f"{len(rows) - failed} of {len(rows)} files converted")
    return FAILED if failed else OK


def _form(out: Path | None) -> str:
    if out is not None and out.suffix in (".json", ".h5", ".scad", ".FCMacro"):
        return {".json": "deepcad", ".h5": "h5", ".scad": "openscad", ".FCMacro": "freecad"}[out.suffix]
    return "openecad"


def _target(out: Path | None, source: Path, form: str, *, many: bool) -> Path | None:
    if out is None:
        return None
    if many or out.is_dir():
        out.mkdir(parents=True, exist_ok=True)
        return out / f"{source.name.removesuffix(source.suffix)}{ENDINGS[form]}"
    return out


def _write(program: Program, form: str, target: Path | None, *, quiet: bool) -> None:
    if form == "h5":
        assert target is not None
        write_h5(target, program)
        return
    text = _text(program, form)
    if target is not None:
        target.write_text(text, encoding="utf-8")
    elif not quiet:
        print(text, end="")


def _text(program: Program, form: str) -> str:
    if form in ("openecad", "canonical"):
        return emit(program, "official" if form == "openecad" else "canonical")
    if form == "deepcad":
        return json.dumps(to_deepcad(program), indent=1) + "\n"
    if form == "vector":
        return json.dumps(to_deepcad(program, "vector").tolist()) + "\n"
    return export_text(program, form)  # type: ignore[arg-type]
