"""`mm video index` and `mm video search`: clips encoded once and found by text."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm.command import FAILED, OK, CommandParser, emit_json, emit_table, positive, progress
from mm.encoders.evilm.command_parts import add_model, natural, unknown_words, video_model

if TYPE_CHECKING:
    import argparse

    from mm.encoders.evilm.model import EViLM

SHOWN_NOTES = 20


def index(argv: list[str]) -> int:
    """Encode clips."""
    arguments = _index_parser().parse_args(argv)

    from mm.encoders.evilm.index import build_index

    videos, captions = _sources(arguments)
    name = arguments.model
    model = video_model(name, arguments.device)
    if Path(name).is_dir():  # a folder is found again from wherever the search is started
        name = str(Path(name).resolve())
    found, now = build_index(
        model,
        videos,
        captions,
        arguments.output,
        name=name,
        num_frames=arguments.frames,
        batch_size=arguments.batch_size,
        shard_items=arguments.shard_items,
        workers=arguments.workers,
        progress=lambda items, total: progress("encoding clips", total)(items),
    )
    result: dict[str, Any] = {
        "index": arguments.output,
        "clips": len(captions),
        "encoded_now": now,
        "unreadable": len(captions) - len(found.clips),
        "frames": found.num_frames,
        "model": name,
    }
    if arguments.json:
        emit_json(result | {"notes": found.notes})
    else:
        emit_table([result])
        _say([f"{file}: {note}" for file, note in found.notes.items()])
    return OK if found.clips else FAILED


def _index_parser() -> CommandParser:
    parser = CommandParser(
        "video index",
        about="Encode clips once, so that text finds them. Run it again after an interruption or with more clips:\n"
        "only what is missing is computed. A file that cannot be read is named and left out.",
        example="mm video index CLIPS -o index/\n  mm video index captions.csv --videos CLIPS -o index/ --workers 4",
        json_output=True,
    )
    parser.add_argument("source", metavar="FOLDER|FILE", help="folder of videos, or annotations that name videos")
    parser.add_argument("-o", "--output", "--out", required=True, metavar="INDEX", help="folder of the index")
    parser.add_argument("--videos", metavar="FOLDER", help="where the videos of a file lie (default: beside the file)")
    parser.add_argument("--layout", default="auto", help="of the file, see mm video evaluate --help (default: auto)")
    parser.add_argument("--split", default="", help="part of the file, where it knows several")
    parser.add_argument("--frames", type=positive, default=4, help="evenly spaced frames per clip (default: 4)")
    parser.add_argument("--batch-size", type=positive, default=8, help="clips per pass (default: 8)")
    parser.add_argument("--shard-items", type=positive, default=256, help="clips per file of the index (default: 256)")
    parser.add_argument("--workers", type=natural, default=0, help="decoding processes (default: 0)")
    add_model(parser)
    return parser


def _sources(arguments: argparse.Namespace) -> tuple[Path, dict[Path, tuple[str, ...]]]:
    """Folder of the videos, and every file with its captions."""
    from mm.data.video_files import VideoFiles, video_files
    from mm.encoders.evilm.annotations import by_video, read_rows

    source = Path(arguments.source)
    if source.is_dir():
        for name in ("videos", "split"):
            if getattr(arguments, name):
                raise ValueError(f"--{name} is about an annotation file, {source} is a folder")
        return source, dict.fromkeys(video_files(source), ())
    rows = by_video(read_rows(source, arguments.layout, split=arguments.split))
    files = VideoFiles(arguments.videos or source.parent)
    found = {}
    for row in rows:
        try:
            found[files.find(row.video)] = row.captions
        except (FileNotFoundError, ValueError) as error:
            raise ValueError(f"{row.place}: {error}") from error
    return files.folder, found


def search(argv: list[str]) -> int:
    """Find clips by text."""
    parser = CommandParser(
        "video search",
        about="Find indexed clips by text, best first. Scores can be compared within one query. Models with\n"
        "contrastive heads choose candidates by cosine and let only these through fusion; --rerank all scores all.",
        example="mm video search index/ 'a red square moves left' -k 5",
        json_output=True,
    )
    parser.add_argument("index", metavar="INDEX", help="folder that mm video index wrote")
    parser.add_argument("query", metavar="QUERY", help="text")
    parser.add_argument("-k", "--top", type=positive, default=5, help="clips to show (default: 5)")
    parser.add_argument("--rerank", default="128", metavar="N|all", help="clips that go through fusion (default: 128)")
    parser.add_argument("--chunk-size", type=positive, default=64, help="clips in memory at a time (default: 64)")
    add_model(parser, default=None)
    arguments = parser.parse_args(argv)
    if arguments.rerank != "all" and (not arguments.rerank.isdigit() or arguments.rerank == "0"):
        parser.error(f"--rerank must be a number from 1 or all, got {arguments.rerank}")

    from mm.encoders.evilm.index import VideoIndex

    found = VideoIndex(arguments.index)
    model = _searcher(found.model, arguments)
    found.check(model)
    rerank = None if arguments.rerank == "all" else int(arguments.rerank)
    result = found.search(model, arguments.query, arguments.top, rerank_k=rerank, chunk_size=arguments.chunk_size)
    notes = unknown_words(model, arguments.query)
    if found.notes:
        notes.append(f"{len(found.notes)} files of the index are damaged; mm video index names them")
    if arguments.json:
        emit_json({"query": arguments.query, "videos": str(found.videos), **asdict(result), "notes": notes})
        return OK
    rows = [{"score": hit.score, "file": hit.file, "captions": " | ".join(hit.captions)} for hit in result.hits]
    emit_table(
        rows if any(row["captions"] for row in rows) else [{k: row[k] for k in ("score", "file")} for row in rows]
    )
    megabytes = result.feature_bytes / 2**20
    print(
        f"{result.clips} clips, {result.scored} scored in {result.seconds:.3f} s, {megabytes:.1f} MiB of features read"
    )
    _say(notes)
    return OK


def _searcher(name: str, arguments: argparse.Namespace) -> EViLM:
    chosen = arguments.model or name
    if not chosen:
        raise ValueError(f"{arguments.index}: does not say which model it was built with; name it with --model")
    return video_model(chosen, arguments.device)


def _say(notes: list[str]) -> None:
    for note in notes[:SHOWN_NOTES]:
        print(f"note: {note}")
    if len(notes) > SHOWN_NOTES:
        print(f"note: {len(notes) - SHOWN_NOTES} more; --json names all")
