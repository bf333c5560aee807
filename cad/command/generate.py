"""`mm cad generate`: a picture of a part becomes a program, a solid and a drawing beside the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mm.command import OK, CommandParser, emit_json, emit_table

EXAMPLE = "mm cad generate part.png -o part.step --compare part_check.png"


def run(argv: list[str]) -> int:
    """Run `mm cad generate`."""
    parser = CommandParser(
        "cad generate",
        about="Write the program of the part in a picture, build it, draw it again and say how well the drawing fits "
        "the picture. The shipped model openecad_tiny knows procedural parts in the iso view and nothing else; folders "
        "and hub ids in TinyLLaVA's layout (the published OpenECAD models) are read too.",
        example=EXAMPLE,
        json_output=True,
    )
    parser.add_argument("picture", metavar="PICTURE", help="a part on a white ground")
    parser.add_argument("-o", "--out", action="append", default=[], help=".step .brep .stl .glb .3mf; may be repeated")
    parser.add_argument("--program", metavar="FILE", help="where the program goes (default: printed)")
    parser.add_argument("--compare", metavar="FILE", help="picture and drawing side by side (.png)")
    parser.add_argument("--model", default="openecad_tiny", help="shipped name or model folder")
    parser.add_argument("--samples", type=int, default=8, help="further candidates for re-ranking (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the candidates")
    parser.add_argument("--free", action="store_true", help="decode without the grammar")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda")
    arguments = parser.parse_args(argv)

    from mm.cad.generate import compare_sheet, generate

    model = _model(arguments.model, arguments.device)
    found = generate(
        model, arguments.picture, samples=arguments.samples, seed=arguments.seed, constrained=not arguments.free
    )
    files = _write(found, arguments)
    if arguments.compare:
        compare_sheet(arguments.picture, found, arguments.compare)
        files.append(arguments.compare)
    result: dict[str, Any] = {
        "candidates": arguments.samples + 1,
        "agreement": found.agreement,
        "confidence": found.candidate.confidence,
        "uncertain": found.uncertain,
        "problem": found.problem,
        "volume_mm3": None if found.solid is None else found.solid.volume,
        "files": files,
    }
    if arguments.json:
        emit_json(result | {"program": found.candidate.text})
    else:
        if not arguments.program:
            print(found.candidate.text)
        emit_table([{"result": name, "value": str(value)} for name, value in result.items()])
        if found.uncertain:
            print("low confidence: the drawing of this program does not fit the picture well")
    return OK


def _model(name: str, device: str) -> Any:
    from mm.cad.model import finished

    return finished(name, device=device).eval()


def _write(found: Any, arguments: Any) -> list[str]:
    """The program and the solid's files."""
    from mm.cad.kernel import build

    files = []
    if arguments.program:
        Path(arguments.program).write_text(found.candidate.text, encoding="utf-8")
        files.append(arguments.program)
    if not arguments.out:
        return files
    if found.program is None:
        raise ValueError(f"the answer is no program ({found.problem}); try another picture or more --samples")
    exact = any(Path(path).suffix.lower() in (".step", ".stp", ".brep") for path in arguments.out)
    solid = build(found.program, kernel="occ" if exact else "mesh")
    return files + [str(solid.export(path)) for path in arguments.out]
