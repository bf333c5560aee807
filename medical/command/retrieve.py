"""`mm medical retrieve`: reports and scans that are nearest to a scan or a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mm.checkpoint import write_aside, write_json
from mm.command import OK, CommandParser, UsageError, emit_json, emit_table
from mm.medical.command.cases import add_model, load_model, new_folder
from mm.medical.command.source import add_reading, load

ABOUT = """Find the reports or scans of an index that are nearest to a scan, or the scans nearest to a text. The score's
order is what counts; pictures of the hits go to --out."""


def run(argv: list[str]) -> int:
    """Run `mm medical retrieve`."""
    parser = CommandParser(
        "medical retrieve",
        about=ABOUT,
        example='mm medical retrieve --text "a cyst of the left kidney" --out found/',
        json_output=True,
    )
    parser.add_argument("scan", metavar="SCAN", nargs="?", help="NIfTI file, DICOM file or folder, or a zip of these")
    parser.add_argument("--text", help="a sentence instead of a scan")
    add_reading(parser)
    add_model(parser)
    parser.add_argument(
        "--index", default="scans.index", metavar="FOLDER", help="from `mm medical index` (default: scans.index)"
    )
    parser.add_argument("-k", type=int, default=5, help="how many (default: 5)")
    parser.add_argument(
        "--levels", nargs="+", choices=("report", "sentence", "word"), default=["report"], help="default: report"
    )
    parser.add_argument("--fusion", choices=("mean", "zscore"), default="zscore", help="of several levels")
    parser.add_argument("--rerank", type=int, default=0, metavar="N", help="add the match head's logit to the first N")
    parser.add_argument("--target", choices=("reports", "scans"), help="default: reports for a scan, scans for a text")
    parser.add_argument("--window", help="intensity window of the scan (default: that of the index)")
    parser.add_argument("--out", metavar="FOLDER", help="new folder for result.json and gallery.html")
    parser.add_argument("--overwrite", action="store_true", help="replace --out")
    arguments = parser.parse_args(argv)
    if (arguments.scan is None) == (arguments.text is None):
        raise UsageError("name either a scan or --text")

    from mm.medical.tasks.index import ScanIndex
    from mm.medical.tasks.page import NOTE
    from mm.medical.tasks.retrieval import RetrievalConfig, gallery_page, retrieve

    config = RetrievalConfig(
        levels=tuple(arguments.levels), fusion=arguments.fusion, rerank=arguments.rerank, target=arguments.target
    )
    out = new_folder(arguments)
    index = ScanIndex(arguments.index)
    query: Any = arguments.text if arguments.text is not None else load(arguments)
    model = load_model(arguments)
    hits = retrieve(model, query, index, arguments.k, config, window=arguments.window)
    rows = [hit.as_dict() for hit in hits]
    if out is not None:
        with write_aside(out) as folder:
            folder.mkdir()
            gallery_page(index, hits, "Retrieval", arguments.text or "a scan").save(folder / "gallery.html")
            write_json(Path(folder) / "result.json", {"note": NOTE, "hits": rows})
    if arguments.json:
        emit_json({"note": NOTE, "hits": rows})
    else:
        shown = [{n: v for n, v in row.items() if n != "report" and v != ""} for row in rows]
        emit_table(shown, title="nearest first, research use only")
        for number, hit in enumerate(hits, 1):
            print(f"{number}. {hit.report or 'no report'}")
    return OK
