"""Annotations of video data sets as rows of (video, captions) or (video, question, answer).

| layout | file |
|---|---|
| `msrvtt` | JSON with `videos` and `sentences`; a row per sentence, splits as the videos say |
| `msvd` | text, `CLIP a caption` per line; or the corpus table with VideoID, Start, End, Language, Description |
| `didemo` | JSON list with `video` and `description`; a row per video with its sentences in order |
| `webvid` | CSV with `videoid`, `page_dir`, `name`; read row by row, files lie at `page_dir/videoid.mp4` |
| `qa` | JSON list with `video_id`, `question`, `answer` (MSRVTT-QA, MSVD-QA) |
| `table` | CSV, TSV, JSON or JSON lines with a column of videos and one of captions, or of questions and answers |
| | (JSON may be an object of such lists, one per split) |
| `folder` | videos with text files of the same name beside them, a caption per line |

Every fault names its row. Nothing is skipped, with one exception that is logged with its count: captions of the MSVD
corpus in languages other than English.
"""

from __future__ import annotations

import csv
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from mm.data.video_files import video_files

logger = logging.getLogger(__name__)
Layout = Literal["auto", "msrvtt", "msvd", "didemo", "webvid", "qa", "table", "folder"]
VIDEOS = ("video", "video_id", "videoid", "video_path", "clip", "clip_id", "filepath", "file_name", "filename", "file")
CAPTIONS = ("caption", "captions", "sentence", "description", "text", "title", "name")
EVERY_SPLIT = "all"


@dataclass(frozen=True, kw_only=True)
class VideoRow:
    """One entry of an annotation file."""

    place: str
    """Where it stands, for messages."""
    video: str
    """Name of the video as the file gives it; `VideoFiles.find` knows the file."""
    captions: tuple[str, ...] = ()
    """What is said about it; never empty without a question."""
    question: str = ""
    """What is asked; "" in a row of captions."""
    answer: str = ""
    """The right answer; "" in a row of captions."""
    split: str = ""
    """"train", "validate", ... as the file names it; "" where it knows none."""


def read_rows(path: str | Path, layout: Layout = "auto", *, split: str = "") -> Iterator[VideoRow]:
    """Rows of an annotation file or a folder, one at a time.

    Args:
        path: The file, or a folder of videos with text files.
        layout: See the table above; "auto" looks at the file.
        split: Part to read; a file that knows several needs one, "all" reads them all.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: another layout, a row that lacks something (named), no row, or a split that is not there.
    """
    path = Path(path)
    if layout not in get_args(Layout):
        raise ValueError(f"layout must be one of {', '.join(get_args(Layout))}, got {layout!r}")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such annotation file or folder of videos")
    seen: Counter[str] = Counter()
    count = 0
    for row in READERS[found_layout(path) if layout == "auto" else layout](path):
        seen[row.split] += 1
        if not split and row.split:
            named = f"{row.split!r} among them"
            raise ValueError(f"{path}: the rows belong to splits ({named}); say which one, or {EVERY_SPLIT!r}")
        if split in ("", EVERY_SPLIT, row.split):
            count += 1
            yield row
    if not count:
        known = ", ".join(sorted(filter(None, seen))) or "it knows no splits"
        raise ValueError(f"{path}: no row" + (f" of split {split!r} (there are: {known})" if split else " in it"))


def found_layout(path: Path) -> Layout:
    """The layout of a file by its ending and its keys.

    Raises:
        ValueError: none of those that are known.
    """
    if path.is_dir():
        return "folder"
    ending = path.suffix.lower()
    if ending == ".txt":
        return "msvd"
    if ending in (".csv", ".tsv"):
        columns = set(_header(path))
        if {"videoid", "page_dir", "name"} <= columns:
            return "webvid"
        return "msvd" if {"VideoID", "Start", "End", "Description"} <= columns else "table"
    if ending == ".json":
        data = _json(path)
        if isinstance(data, dict) and {"videos", "sentences"} <= set(data):
            return "msrvtt"
        first = data[0] if isinstance(data, list) and data and isinstance(data[0], dict) else {}
        if {"video", "description"} <= set(first):
            return "didemo"
        return "qa" if {"video_id", "question", "answer"} <= set(first) else "table"
    if ending == ".jsonl":
        return "table"
    raise ValueError(f"{path}: annotations are .csv, .tsv, .json, .jsonl, .txt, or a folder of videos with text files")


def by_video(rows: Iterable[VideoRow]) -> list[VideoRow]:
    """One row per video with all its captions, in the order of first appearance; each caption once."""
    found: dict[str, VideoRow] = {}
    for row in rows:
        before = found.get(row.video)
        merged = tuple(dict.fromkeys((*before.captions, *row.captions))) if before else row.captions
        found[row.video] = replace(before or row, captions=merged)
    return list(found.values())


def top_answers(rows: Iterable[VideoRow], count: int) -> tuple[str, ...]:
    """The most frequent answers, most frequent first, equals in alphabetical order: the answer list of a classifier.

    Source: VIOLETv2 (arXiv:2209.01540): 1,500 answers for MSRVTT-QA, 1,000 for MSVD-QA.
    """
    found = Counter(row.answer for row in rows if row.answer)
    return tuple(answer for answer, _ in sorted(found.items(), key=lambda item: (-item[1], item[0]))[:count])


def read_names(path: str | Path) -> dict[str, str]:
    """Names of videos in annotations -> names of their files, from lines `FILE NAME` (MSVD-QA's mapping of clips).

    A NAME `vid7` also stands for the number 7 of question files, which `read_rows` calls `video7`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line without two words.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such list of names")
    names = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        words = line.split()
        if words and len(words) != 2:
            raise ValueError(f"{path}: line {number}: expected `FILE NAME`, found {line!r}")
        if words:
            names[words[1]] = words[0]
            if re.fullmatch(r"vid\d+", words[1]):
                names[words[1].replace("vid", "video")] = words[0]
    return names


# --- layouts -----------------------------------------------------------------------------------------------------


def _msrvtt(path: Path) -> Iterator[VideoRow]:
    data = _json(path)
    if not isinstance(data, dict) or not {"videos", "sentences"} <= set(data):
        raise ValueError(f"{path}: an MSRVTT file is an object with `videos` and `sentences`")
    splits = {}
    for number, video in enumerate(data["videos"]):
        name = _text(f"{path}: videos[{number}]", video, "video_id")
        splits[name] = str(video.get("split", ""))
    for number, sentence in enumerate(data["sentences"]):
        place = f"{path}: sentences[{number}]"
        name = _text(place, sentence, "video_id")
        if name not in splits:
            raise ValueError(f"{place}: video_id {name!r} is not among the {len(splits)} videos of the file")
        yield VideoRow(place=place, video=name, captions=(_text(place, sentence, "caption"),), split=splits[name])


def _msvd(path: Path) -> Iterator[VideoRow]:
    if path.suffix.lower() in (".csv", ".tsv"):
        yield from _msvd_corpus(path)
        return
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip() or line.startswith("#"):
                continue
            name, _, caption = line.strip().partition(" ")
            if not caption.strip():
                raise ValueError(f"{path}: line {number}: expected `CLIP a caption`, found {line.strip()!r}")
            yield VideoRow(place=f"{path}: line {number}", video=name, captions=(_clean(caption),))


def _msvd_corpus(path: Path) -> Iterator[VideoRow]:
    foreign = 0
    for place, row in _table_rows(path):
        if row.get("Language", "English") != "English":
            foreign += 1
            continue
        name = "_".join(_text(place, row, column) for column in ("VideoID", "Start", "End"))
        yield VideoRow(place=place, video=name, captions=(_text(place, row, "Description"),))
    if foreign:
        logger.warning("%s: %d captions in other languages than English are left out", path, foreign)


def _didemo(path: Path) -> Iterator[VideoRow]:
    rows = [
        VideoRow(place=place, video=_text(place, item, "video"), captions=(_text(place, item, "description"),))
        for place, item in _items(path, _json(path))
    ]
    yield from by_video(rows)


def _webvid(path: Path) -> Iterator[VideoRow]:
    for place, row in _table_rows(path):
        video = f"{_text(place, row, 'page_dir')}/{_text(place, row, 'videoid')}.mp4"
        yield VideoRow(place=place, video=video, captions=(_text(place, row, "name"),))


def _qa(path: Path) -> Iterator[VideoRow]:
    for place, item in _items(path, _json(path)):
        number = item.get("video_id")
        name = f"video{number}" if isinstance(number, int) else _text(place, item, "video_id")
        question, answer = _text(place, item, "question"), _text(place, item, "answer")
        yield VideoRow(place=place, video=name, question=question, answer=answer)


def _table(path: Path) -> Iterator[VideoRow]:
    ending = path.suffix.lower()
    if ending in (".csv", ".tsv"):
        yield from (_generic(place, row) for place, row in _table_rows(path))
    elif ending == ".jsonl":
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _generic(f"{path}: line {number}", _parsed(f"{path}: line {number}", line))
    else:
        data = _json(path)
        if not isinstance(data, dict):
            yield from (_generic(place, item) for place, item in _items(path, data))
            return
        for split, part in data.items():
            for place, item in _items(path, part, split):
                yield replace(_generic(place, item), split=split)


def _folder(path: Path) -> Iterator[VideoRow]:
    for video in video_files(path):
        words = video.with_suffix(".txt")
        if not words.is_file():
            raise ValueError(f"{video}: no captions; write them to {words.name} beside it, one per line")
        lines = words.read_text(encoding="utf-8-sig").splitlines()
        captions = tuple(_clean(line) for line in lines if line.strip())
        if not captions:
            raise ValueError(f"{words}: no caption in it")
        yield VideoRow(place=str(words), video=video.relative_to(path).as_posix(), captions=captions)


READERS: dict[str, Callable[[Path], Iterator[VideoRow]]] = {
    "msrvtt": _msrvtt,
    "msvd": _msvd,
    "didemo": _didemo,
    "webvid": _webvid,
    "qa": _qa,
    "table": _table,
    "folder": _folder,
}


# --- parts -------------------------------------------------------------------------------------------------------


def _generic(place: str, row: Any) -> VideoRow:
    if not isinstance(row, dict):
        raise ValueError(f"{place}: expected an object, found {type(row).__name__}")
    video = _text(place, row, _column(place, row, VIDEOS, "videos"))
    split = str(row.get("split") or "")
    if "question" in row:
        question, answer = _text(place, row, "question"), _text(place, row, "answer")
        return VideoRow(place=place, video=video, question=question, answer=answer, split=split)
    column = _column(place, row, CAPTIONS, "captions, or question and answer")
    values = row[column] if isinstance(row[column], list) else [row[column]]
    captions = tuple(_text(place, {column: value}, column) for value in values)
    if not captions:
        raise ValueError(f"{place}: {column!r} is an empty list")
    return VideoRow(place=place, video=video, captions=captions, split=split)


def _column(place: str, row: dict[str, Any], known: Sequence[str], what: str) -> str:
    for name in known:
        if name in row:
            return name
    raise ValueError(f"{place}: no column of {what} ({', '.join(known)}); there are {', '.join(map(str, row))}")


def _text(place: str, row: Any, name: str) -> str:
    """A field that must be there and say something."""
    if not isinstance(row, dict) or row.get(name) is None:
        there = f"it has {', '.join(map(str, row))}" if isinstance(row, dict) else f"it is a {type(row).__name__}"
        raise ValueError(f"{place}: {name!r} is missing; {there}")
    value = row[name]
    if not isinstance(value, str | int) or isinstance(value, bool) or not _clean(str(value)):
        raise ValueError(f"{place}: {name!r} must be text, got {value!r}")
    return _clean(str(value))


def _clean(text: str) -> str:
    return " ".join(text.split())


def _items(path: Path, data: Any, split: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(data, list):
        raise ValueError(f"{path}: expected a list of objects, found {type(data).__name__}")
    for number, item in enumerate(data):
        place = f"{path}: {split}[{number}]" if split else f"{path}: entry {number}"
        if not isinstance(item, dict):
            raise ValueError(f"{place}: expected an object, found {type(item).__name__}")
        yield place, item


def _json(path: Path) -> Any:
    return _parsed(str(path), path.read_text(encoding="utf-8-sig"))


def _parsed(place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{place}: not valid JSON ({error})") from error


def _header(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return next(csv.reader(file, delimiter=_delimiter(path)), [])


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _table_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a table, one in memory at a time; a row is counted from 1, without the header."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file, delimiter=_delimiter(path), strict=True)
        try:
            for number, row in enumerate(table, 1):
                place = f"{path}: row {number}"
                if None in row or None in row.values():
                    raise ValueError(f"{place}: {len(table.fieldnames or ())} columns in the header, not in this row")
                yield place, row
        except csv.Error as error:
            raise ValueError(f"{path}: line {table.line_num}: not readable as a table ({error})") from error
