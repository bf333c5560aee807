"""`mm medical vocabulary`: word pieces of your own reports, to train with."""

from __future__ import annotations

from pathlib import Path

from mm.command import OK, CommandParser, UsageError, emit_json

ABOUT = """Learn the word pieces of the reports of a folder or table and write them as vocab.txt for
`mm fit --config medical/folder`. Only the training part of the split is read, so that nothing of the test leaks."""


def run(argv: list[str]) -> int:
    """Run `mm medical vocabulary`."""
    parser = CommandParser(
        "medical vocabulary", about=ABOUT, example="mm medical vocabulary scans/ --out vocab.txt", json_output=True
    )
    parser.add_argument("source", metavar="SOURCE", help="folder of scans with reports, or a table")
    parser.add_argument("--format", default="folder", help="folder (default), decathlon, m3d, ct_rate")
    parser.add_argument("--table", default="", help="format folder: CSV with the reports instead of text files")
    parser.add_argument("--root", default="", help="folder that the paths of a table start from")
    parser.add_argument("--size", type=int, default=4000, help="largest number of pieces (default: 4000)")
    parser.add_argument("--seed", type=int, default=0, help="of the split, as in the run (default: 0)")
    parser.add_argument("--out", required=True, metavar="FILE", help="vocab.txt to write")
    parser.add_argument("--overwrite", action="store_true", help="replace --out")
    arguments = parser.parse_args(argv)
    if arguments.size < 100:
        raise UsageError(f"--size must be at least 100, got {arguments.size}")
    out = Path(arguments.out)
    if out.exists() and not arguments.overwrite:
        raise ValueError("--out is there already: choose another file, or use --overwrite")

    from mm.checkpoint import write_aside
    from mm.medical.folder_data import RecordsConfig, split_of_records
    from mm.medical.velvet.tokenizer import SentenceTokenizer

    config = RecordsConfig(
        format=arguments.format,
        path=arguments.source,
        table=arguments.table,
        root=arguments.root,
        split_seed=arguments.seed,
    )
    texts = [record.report for record in split_of_records(config)["train"] if record.report]
    if not texts:
        raise ValueError("no scan of the training part has a report")
    tokenizer = SentenceTokenizer.build(texts, size=arguments.size)
    with write_aside(out) as path:
        path.write_text("\n".join(tokenizer.vocabulary) + "\n", encoding="utf-8")
    found = {"pieces": len(tokenizer.vocabulary), "reports": len(texts)}
    emit_json(found) if arguments.json else print(f"{found['pieces']} pieces of {found['reports']} reports")
    return OK
