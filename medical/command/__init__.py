"""`mm medical`: one file per word after it. No output holds a patient's name or a file name."""

from __future__ import annotations

from importlib import import_module

from mm.command import OK, CommandParser, UsageError

SUBVERBS = {
    "info": "shape, spacing, orientation, intensities and doubts of a scan, and a picture",
    "deidentify": "cleaned copies of DICOM or NIfTI files, with a report of the changes",
    "embed": "vectors of a scan from a trained model",
    "segment": "labels on the grid of the file, volumes in ml, a page per case",
    "index": "vectors of a folder of scans and reports, to search in",
    "retrieve": "reports and scans that are nearest to a scan or a text",
    "ask": "a question about a scan",
    "report": "a draft report for research, with the nearest reports beside it",
    "vocabulary": "word pieces of your own reports, to train with",
}
"""Word -> what it does; each is a module of this package with `run(argv)`."""


def run(argv: list[str]) -> int:
    """Run `mm medical`."""
    if argv and argv[0] in SUBVERBS:
        return import_module(f"mm.medical.command.{argv[0]}").run(argv[1:])  # type: ignore[no-any-return]
    listed = "\n".join(f"  {word:<12}{about}" for word, about in SUBVERBS.items())
    parser = CommandParser(
        "medical",
        about=f"CT scans: NIfTI files, DICOM files and folders, zip archives. Research use only.\n\n{listed}",
        example="mm medical info scan.nii.gz --picture panel.png",
        usage="mm medical {" + ",".join(SUBVERBS) + "} ...",
    )
    if not argv:
        parser.print_help()
        return OK
    parser.parse_args([word for word in argv if word in ("-h", "--help")])
    raise UsageError(f"unknown word {argv[0]!r} after mm medical; there are {', '.join(SUBVERBS)}")
