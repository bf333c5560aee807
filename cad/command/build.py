"""`mm cad build`: a program becomes a solid, its files and its pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mm.command import OK, CommandParser, emit_json, emit_table

EXAMPLE = "mm cad build part.py -o part.step --picture part.png --style transparent"


def run(argv: list[str]) -> int:
    """Run `mm cad build`."""
    parser = CommandParser(
        "cad build",
        about="Build the solid of an OpenECAD program in a confined child process; write it as STEP, BREP, STL, GLB or "
        "3MF and draw it.",
        example=EXAMPLE,
        json_output=True,
    )
    parser.add_argument("program", metavar="PROGRAM", help="file with the text of a program")
    parser.add_argument("-o", "--out", action="append", default=[], help=".step .brep .stl .glb .3mf; may be repeated")
    parser.add_argument("--kernel", choices=("occ", "mesh"), default="occ", help="occ: exact (default); mesh: quick")
    parser.add_argument("--picture", metavar="FILE", help="picture to write (.png), or .svg for exact hidden lines")
    parser.add_argument("--view", default="iso", help="iso (default), front, back, left, right, top, bottom, or x,y,z")
    parser.add_argument("--style", default="shaded", help="shaded (default), transparent, orthographic, sketch")
    parser.add_argument("--size", type=int, default=480, help="pixels (default: 480)")
    parser.add_argument("--seconds", type=float, default=30.0, help="longest time of the kernel (default: 30)")
    parser.add_argument("--memory", type=int, default=4096, metavar="MIB", help="its memory (default: 4096)")
    arguments = parser.parse_args(argv)

    from mm.cad.kernel import Limits, build

    limits = Limits(seconds=arguments.seconds, cpu_seconds=arguments.seconds, memory_mb=arguments.memory)
    solid = build(read_program(arguments.program), kernel=arguments.kernel, limits=limits)
    files = [str(solid.export(path, limits=limits)) for path in arguments.out]
    if arguments.picture:
        draw(solid, arguments)
        files.append(arguments.picture)
    low, high = solid.bounds.tolist()
    result: dict[str, Any] = {
        "volume_mm3": solid.volume,
        "area_mm2": solid.area,
        "centroid_mm": solid.centroid.tolist(),
        "bounds_mm": [low, high],
        "is_valid": solid.is_valid,
        "kernel": solid.kernel,
        "seconds": solid.seconds,
        "files": files,
    }
    if arguments.json:
        emit_json(result)
    else:
        emit_table([{"measure": name, "value": _text(value)} for name, value in result.items()])
    return OK


def draw(solid: Any, arguments: Any) -> None:
    """Write the picture that was asked for."""
    from PIL import Image

    from mm.cad.drawing import hidden_line_svg, render
    from mm.checkpoint import write_aside

    view = arguments.view
    if "," in view:
        view = tuple(float(number) for number in view.split(","))
    if arguments.picture.lower().endswith(".svg"):
        text = hidden_line_svg(solid, view=view, size=arguments.size)
        with write_aside(arguments.picture) as path:
            path.write_text(text, encoding="utf-8")
        return
    picture = render(solid, view=view, style=arguments.style, size=arguments.size)
    with write_aside(arguments.picture) as path:
        Image.fromarray(picture).save(path)


def read_program(name: str) -> str:
    """Text of a program file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a text file.
    """
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error.reason} at byte {error.start})") from error


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_text(entry) for entry in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
