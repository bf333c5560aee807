"""`mm medical report`: a draft report for research, with its references and where its sentences look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mm.checkpoint import write_aside, write_json
from mm.command import CommandParser
from mm.medical.command.cases import PAGE_FILE, RESULT_FILE, add_model, add_output, load_model, run_cases
from mm.medical.command.source import add_source, load
from mm.medical.tasks.cases import ScanCase

ABOUT = """Write a draft report of a scan, every scan of a folder, or a DICOM folder. The text is marked as research
only; with --index the nearest reports stand beside it. Writes per case result.json and case.html, and with --maps the
attention of every sentence as NIfTI on the grid of the file."""


def run(argv: list[str]) -> int:
    """Run `mm medical report`."""
    parser = CommandParser(
        "medical report",
        about=ABOUT,
        example="mm medical report scan.nii.gz --index scans.index --out drafts/",
        json_output=True,
    )
    add_source(parser)
    add_output(parser)
    add_model(parser)
    parser.add_argument("--writer", help="writer: folder or shipped name (default: the one beside the model)")
    parser.add_argument("--index", metavar="FOLDER", help="where the nearest reports come from")
    parser.add_argument("-k", type=int, default=3, help="how many references (default: 3)")
    parser.add_argument("--maps", action="store_true", help="write attention_1.nii.gz ... per sentence; needs --out")
    parser.add_argument("--window", help="intensity window (default: -175..250 HU)")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="longest text (default: 512)")
    arguments = parser.parse_args(argv)
    if arguments.maps and not arguments.out:
        raise ValueError("--maps writes files: name a folder with --out")

    from mm.medical.tasks.answering import draft_report
    from mm.medical.tasks.identity import fingerprint
    from mm.medical.tasks.index import ScanIndex
    from mm.medical.volumes.windows import window_named

    if arguments.window:
        window_named(arguments.window)
    index = ScanIndex(arguments.index) if arguments.index else None
    model = load_model(arguments).attach(writer=arguments.writer)
    if index is not None:
        index.check_model(model)
    writer: Any = model.part("writer", "a report")
    names = ("k", "maps", "window", "intensity", "series", "missing", "max_new_tokens")
    settings: dict[str, Any] = {"task": "report", "weights": fingerprint(model), "writer": fingerprint(writer)}
    settings |= {"index": [entry.key for entry in index.entries] if index else None}
    settings |= {name: getattr(arguments, name) for name in names}

    def work(case: ScanCase, folder: Path | None) -> dict[str, Any]:
        volume = load(arguments, str(case.path))
        found = draft_report(
            model,
            writer,
            volume,
            index=index,
            k=arguments.k,
            window=arguments.window,
            max_new_tokens=arguments.max_new_tokens,
        )
        result = {**found.summary(), "made_with": settings}
        if folder is not None:
            with write_aside(folder) as place:
                place.mkdir()
                if arguments.maps and found.sentences:
                    save_maps(place, model, found)
                found.page(model, f"Case {folder.name}").save(place / PAGE_FILE)
                write_json(place / RESULT_FILE, result)
        return result

    return run_cases(arguments, settings, work, lambda result: {"draft": result["draft"]})


def save_maps(folder: Path, model: Any, found: Any) -> None:
    """Attention of every sentence on the grid of the file, one at a time: a map is as large as the scan."""
    from mm.medical.tasks.attention import sentence_weights
    from mm.medical.tasks.scan_input import regions_to_scan
    from mm.medical.volumes.nifti import save_nifti

    grid, edge = found.levels.grids["sentence"], model.config.vision.volume_size
    for number, row in enumerate(sentence_weights(model, found.levels, found.sentences), 1):
        save_nifti(
            folder / f"attention_{number}.nii.gz",
            regions_to_scan(row, grid, edge, found.volume.hu.shape),
            found.volume,
        )
