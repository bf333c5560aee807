"""Tables of pictures and their captions: text, CSV and TSV files, lists of JSON objects, COCO captions.

| file | one entry is |
|---|---|
| `.txt` | a line: the caption; no picture |
| `.csv`, `.tsv` | a row with a header above; rows with the same picture are its several captions |
| `.json` | an object of the list, `{"image": ..., "caption": "..." or ["...", "..."]}`; or COCO's captions |
| `.jsonl` | the same objects, one per line |

White space is made single blanks, line breaks too. Empty captions are no captions: `without_caption` counts the entries
that are left with none.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mm.data.reading import OnError, Reader, Record, read_picture
from mm.data.sample import VisualSample

CAPTIONS = ("caption", "captions", "text", "title", "sentence", "description")
PICTURES = ("image", "images", "filepath", "file_name", "filename", "path", "__key__")
LABELS = ("label", "class", "category")
LARGEST_CELL = 16 * 2**20
"""Characters of a CSV cell; Python's own limit of 128 KiB is less than a long document."""
Row = tuple[str, str, list[Any], str]
"""(Where it stands, picture, captions as found, class)."""


@dataclass(frozen=True)
class CaptionEntry:
    """A picture and what is said about it."""

    place: str
    """Where it stands, for messages."""
    image: str
    """Picture file as the table names it; "" for a table of texts."""
    captions: tuple[str, ...]
    """Its captions, each on one line, in the order of the file; may be empty."""
    label: str
    """Its class; "" if the table names none."""


class CaptionTable(Reader):
    """Reads a table of captions, with or without the pictures.

    Args:
        path: The file; its suffix says what it is.
        images: Folder of the pictures; default: the folder of the file.
        caption: Column of the captions; default: the first of caption, captions, text, title, ... that exists.
        image: Column of the picture files; default: the first of image, filepath, file_name, ... that exists.
        label: Column of the class; default: label, class or category.
        on_error: What to do with a picture that can't be read, or a caption that is no text.

    Raises:
        ValueError: a suffix that is not known.
    """

    def __init__(
        self,
        path: str | Path,
        images: str | Path | None = None,
        *,
        caption: str | None = None,
        image: str | None = None,
        label: str | None = None,
        on_error: OnError = "raise",
    ) -> None:
        super().__init__(str(path), on_error=on_error)
        self.path = Path(path)
        self.images = Path(images) if images is not None else self.path.parent
        self.columns = {"caption": caption, "image": image, "label": label}
        self.without_caption = 0
        if self.path.suffix.lower() not in SUFFIXES:
            raise ValueError(f"{path}: a table of captions is one of {', '.join(SUFFIXES)}")

    def entries(self) -> list[CaptionEntry]:
        """All entries without reading a picture; one per picture, or one per row of a table without pictures.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file can't be parsed, lacks the column, or holds a caption that is no text (named).
        """
        return list(self._entries())

    def captions(self) -> list[str]:
        """All captions in the order of the file; sets `without_caption`.

        Raises:
            FileNotFoundError, ValueError: as `entries`.
        """
        entries = self.entries()
        self.without_caption = sum(not entry.captions for entry in entries)
        return [caption for entry in entries for caption in entry.captions]

    def records(self) -> Iterator[Record]:
        for index, entry in enumerate(self._entries()):
            yield entry.place, partial(self._sample, entry, index)

    def _sample(self, entry: CaptionEntry, index: int) -> VisualSample:
        pictures = [read_picture(self.images / entry.image)] if entry.image else []
        meta = {"file": str(self.path), "index": index, "id": entry.image, "captions": entry.captions}
        text = entry.captions[0] if entry.captions else ""
        return VisualSample(pictures, "what is in the picture?" if entry.label else "", entry.label, text, meta)

    def _entries(self) -> Iterator[CaptionEntry]:
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such table of captions")
        try:
            rows = list(SUFFIXES[self.path.suffix.lower()](self))
        except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
            raise ValueError(f"{self.path}: can't be read as {self.path.suffix[1:]} in UTF-8 ({error})") from error
        if not rows:
            raise ValueError(f"{self.path}: no entry in it")
        yield from _grouped(rows)

    # --- formats -----------------------------------------------------------------------------------------------------

    def _text(self) -> Iterator[Row]:
        with self.path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                yield f"{self.path}: line {number}", "", [line], ""

    def _table(self) -> Iterator[Row]:
        csv.field_size_limit(LARGEST_CELL)
        with self.path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, delimiter="\t" if self.path.suffix.lower() == ".tsv" else ",")
            for number, row in enumerate(table, 1):
                yield self._row(f"{self.path}: row {number}", row)

    def _json(self) -> Iterator[Row]:
        data = json.loads(self.path.read_text(encoding="utf-8-sig"))
        if isinstance(data, dict) and "annotations" in data:
            yield from self._coco(data)
            return
        if not isinstance(data, list):
            raise ValueError(f"{self.path}: expected a list of objects, or COCO's images and annotations")
        for number, item in enumerate(data):
            yield self._item(f"{self.path}: entry {number}", item)

    def _lines(self) -> Iterator[Row]:
        with self.path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield self._item(f"{self.path}: line {number}", json.loads(line))

    def _coco(self, data: dict[str, Any]) -> Iterator[Row]:
        """Pictures in the order of the file, those without caption included."""
        found: dict[Any, list[Any]] = {picture["id"]: [] for picture in data.get("images", [])}
        for annotation in data["annotations"]:
            if annotation["image_id"] not in found:
                raise ValueError(f"{self.path}: a caption is of picture {annotation['image_id']}, which is not listed")
            found[annotation["image_id"]].append(annotation["caption"])
        for picture in data["images"]:
            yield f"{self.path}: picture {picture['id']}", picture["file_name"], found[picture["id"]], ""

    def _item(self, place: str, item: Any) -> Row:
        return self._row(place, item) if isinstance(item, dict) else (place, "", [item], "")

    def _row(self, place: str, row: dict[str, Any]) -> Row:
        columns = [name for name in row if name]
        caption = _column(place, columns, self.columns["caption"], CAPTIONS)
        label = _column(place, columns, self.columns["label"], LABELS)
        if caption is None and label is None:
            raise ValueError(f"{place}: no column of captions; there are {', '.join(columns)}; name one with caption=")
        image = _column(place, columns, self.columns["image"], PICTURES)
        value = row[caption] if caption is not None else []
        captions = value if isinstance(value, list) else [value]
        picture = row[image] if image else ""
        if isinstance(picture, list):
            if len(picture) != 1:
                raise ValueError(f"{place}: one picture per entry, got {len(picture)}")
            picture = picture[0]
        return place, str(picture or ""), captions, str(row[label] or "") if label else ""


SUFFIXES = {
    ".txt": CaptionTable._text,
    ".csv": CaptionTable._table,
    ".tsv": CaptionTable._table,
    ".json": CaptionTable._json,
    ".jsonl": CaptionTable._lines,
}


def _column(place: str, columns: list[str], named: str | None, known: Iterable[str]) -> str | None:
    if named is None:
        return next((name for name in known if name in columns), None)
    if named not in columns:
        raise ValueError(f"{place}: no column {named!r}; there are {', '.join(columns)}")
    return named


def _grouped(rows: list[Row]) -> Iterator[CaptionEntry]:
    """Rows with the same picture become one entry, at the place of the first; without picture every row is its own."""
    groups: dict[str, list[Row]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(row[1] or f"\0{number}", []).append(row)
    for group in groups.values():
        place, image, _, label = group[0]
        captions = [_caption(row[0], value) for row in group for value in row[2]]
        yield CaptionEntry(place, image, tuple(caption for caption in captions if caption), label)


def _caption(place: str, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{place}: a caption must be text, got {value!r}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{place}: the caption holds half a character (a lone surrogate, {error.reason})") from error
    return " ".join(value.split())
