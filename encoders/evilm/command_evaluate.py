"""`mm video evaluate`: retrieval or answers on annotated videos."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm.command import OK, CommandParser, emit_json, emit_table, positive, progress
from mm.encoders.evilm.command_parts import add_model, video_model

if TYPE_CHECKING:
    import argparse

    from mm.encoders.evilm.annotations import VideoRow
    from mm.encoders.evilm.model import EViLM

ABOUT = """Retrieval (R@1, 5, 10, median rank) where rows hold captions, accuracy where they hold questions.

Layouts: msrvtt (one caption per video is a query), msvd (all captions), didemo (the sentences joined), webvid, qa
(MSRVTT-QA, MSVD-QA), table (CSV, TSV, JSON, JSON lines), folder (videos with text files beside them)."""


def evaluate(argv: list[str]) -> int:
    """Evaluate a model."""
    arguments = _parser().parse_args(argv)

    from mm.data.video_files import VideoFiles
    from mm.encoders.evilm.annotations import found_layout, read_names, read_rows

    source = Path(arguments.annotations)
    rows = list(read_rows(source, arguments.layout, split=arguments.split))
    layout = found_layout(source) if arguments.layout == "auto" else arguments.layout
    names = read_names(arguments.names) if arguments.names else None
    files = VideoFiles(arguments.videos or (source if source.is_dir() else source.parent), names)
    model = video_model(arguments.model, arguments.device)
    result = (
        _answers(model, rows, files, arguments)
        if rows[0].question
        else _retrieval(model, rows, files, layout, arguments)
    )
    problems = result.pop("problems")
    result = {"annotations": str(source), "layout": layout, "model": arguments.model, **result}
    if arguments.json:
        emit_json(result | {"problems": problems})
        return OK
    emit_table([{"measure": name, "value": value} for name, value in result.items()])
    for problem in problems:
        print(f"note: {problem}")
    return OK


def _parser() -> CommandParser:
    parser = CommandParser(
        "video evaluate",
        about=ABOUT,
        example="mm video evaluate MSRVTT.json --split test --videos CLIPS\n"
        "  mm video evaluate test_qa.json --videos CLIPS --answers-from train_qa.json --answer-count 1500",
        json_output=True,
    )
    parser.add_argument("annotations", metavar="FILE|FOLDER", help="annotation file, or videos with text files")
    parser.add_argument("--videos", metavar="FOLDER", help="where the videos lie (default: beside the file)")
    parser.add_argument("--names", metavar="FILE", help="lines `FILE NAME` where annotations name videos differently")
    parser.add_argument("--layout", default="auto", help="see above (default: auto, by ending and keys)")
    parser.add_argument("--split", default="", help="part of the file, where it knows several; or all")
    frames = "evenly spaced frames per clip (default: 4; VIOLETv2 is evaluated with 5)"
    parser.add_argument("--frames", type=positive, default=4, help=frames)
    parser.add_argument("--batch-size", type=positive, default=8, help="clips per pass (default: 8)")
    parser.add_argument("--skip-unreadable", action="store_true", help="leave out bad videos and say so; else stop")
    found = parser.add_argument_group("retrieval")
    found.add_argument("--captions", choices=("first", "all", "paragraph"), help="queries (default: by the layout)")
    found.add_argument(
        "--rerank", type=positive, metavar="N", help="score the N nearest by cosine (default: all pairs)"
    )
    found.add_argument("--chunk-size", type=positive, default=64, help="pairs in fusion at a time (default: 64)")
    answers = parser.add_argument_group("answers")
    answers.add_argument("--answers-from", metavar="FILE", help="training questions whose answers make the answer list")
    answers.add_argument("--answer-count", type=positive, default=1500, help="the most frequent ones (default: 1500)")
    add_model(parser)
    return parser


def _bar(items: Iterable[Any], total: int) -> Iterable[Any]:
    return progress("reading videos", total)(items)


def _retrieval(
    model: EViLM, rows: list[VideoRow], files: Any, layout: str, arguments: argparse.Namespace
) -> dict[str, Any]:
    from mm.encoders.evilm.retrieval import PROTOCOLS, encode_rows, retrieval

    if arguments.answers_from:
        raise ValueError(f"--answers-from is about questions, {arguments.annotations} holds captions")
    clips = encode_rows(
        model,
        rows,
        files,
        num_frames=arguments.frames,
        batch_size=arguments.batch_size,
        skip_unreadable=arguments.skip_unreadable,
        progress=_bar,
    )
    captions = arguments.captions or PROTOCOLS.get(layout, "all")
    found = retrieval(model, clips, captions, rerank_k=arguments.rerank, chunk_size=arguments.chunk_size)
    return {"captions": captions, **found, "problems": clips.problems}


def _answers(model: EViLM, rows: list[VideoRow], files: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    from mm.encoders.evilm.annotations import read_rows, top_answers
    from mm.encoders.evilm.answering import answer_accuracy

    for name in ("captions", "rerank"):
        if getattr(arguments, name):
            raise ValueError(f"--{name} is about captions, {arguments.annotations} holds questions")
    names = None
    if arguments.answers_from:
        names = top_answers(read_rows(arguments.answers_from, split="all"), arguments.answer_count)
    return answer_accuracy(
        model,
        rows,
        files,
        answers=names,
        num_frames=arguments.frames,
        batch_size=arguments.batch_size,
        skip_unreadable=arguments.skip_unreadable,
        progress=_bar,
    )
