"""`mm medical ask`: a question about a scan, or about every scan of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mm.checkpoint import write_aside, write_json
from mm.command import CommandParser
from mm.medical.command.cases import PAGE_FILE, RESULT_FILE, add_model, add_output, load_model, run_cases
from mm.medical.command.source import add_source, load
from mm.medical.tasks.cases import ScanCase


def run(argv: list[str]) -> int:
    """Run `mm medical ask`."""
    parser = CommandParser(
        "medical ask",
        about="Answer a question about a scan, every scan of a folder, or a DICOM folder. Research use only.",
        example='mm medical ask scan.nii.gz --question "Is there a pleural effusion?" --out answers/',
        json_output=True,
    )
    add_source(parser)
    add_output(parser)
    add_model(parser)
    parser.add_argument("--writer", help="writer: folder or shipped name (default: the one beside the model)")
    parser.add_argument("--question", required=True, help="a sentence")
    parser.add_argument("--choice", action="append", default=[], help="an answer to choose from; may come again")
    parser.add_argument("--window", help="intensity window (default: -175..250 HU)")
    parser.add_argument("--max-new-tokens", type=int, default=50, help="longest answer (default: 50)")
    arguments = parser.parse_args(argv)
    if not arguments.question.strip():
        raise ValueError("--question is empty: write a question")

    from mm.medical.tasks.answering import ask
    from mm.medical.tasks.identity import fingerprint
    from mm.medical.volumes.windows import window_named

    if arguments.window:
        window_named(arguments.window)
    model = load_model(arguments).attach(writer=arguments.writer)
    writer: Any = model.part("writer", "a question")
    names = ("question", "choice", "window", "intensity", "series", "missing", "max_new_tokens")
    settings = {"task": "ask", "weights": fingerprint(model), "writer": fingerprint(writer)}
    settings |= {name: getattr(arguments, name) for name in names}

    def work(case: ScanCase, folder: Path | None) -> dict[str, Any]:
        found = ask(
            model,
            writer,
            load(arguments, str(case.path)),
            arguments.question,
            choices=arguments.choice,
            window=arguments.window,
            max_new_tokens=arguments.max_new_tokens,
        )
        result = {**found.summary(), "made_with": settings}
        if folder is not None:
            with write_aside(folder) as place:
                place.mkdir()
                found.page(f"Case {folder.name}").save(place / PAGE_FILE)
                write_json(place / RESULT_FILE, result)
        return result

    return run_cases(
        arguments, settings, work, lambda result: {"answer": result["answer"], "confidence": result["confidence"]}
    )
