"""Pictures for an evaluation, whatever they lie in, and what is known about each."""

from __future__ import annotations

from pathlib import Path

from mm.data import CaptionTable, ImageFolder, VisualSample, WebDatasetShards
from mm.data.caption_table import SUFFIXES
from mm.data.reading import OnError, Reader


def open_source(
    path: str,
    *,
    images: str | None = None,
    caption: str | None = None,
    image: str | None = None,
    label: str | None = None,
    on_error: OnError = "raise",
) -> Reader:
    """The reader for a place.

    Args:
        path: A folder of pictures (sub-folders are classes, text files captions), WebDataset shards (`x-{00..07}.tar`),
            or a table of captions (`.csv`, `.tsv`, `.json`, COCO's `.json`, `.jsonl`).
        images: Folder of the pictures that a table names.
        caption: Column of the captions.
        image: Column of the picture files.
        label: Column of the class.
        on_error: What to do with a record that can't be read.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a place of another kind, or settings that it would ignore.
    """
    columns = {"images": images, "caption": caption, "image": image, "label": label}
    given = [name for name, value in columns.items() if value is not None]
    if path.endswith(".tar") or path.startswith("pipe:"):
        reader: Reader = WebDatasetShards(path, on_error=on_error)
    elif Path(path).is_dir():
        reader = ImageFolder(path, on_error=on_error)
    elif Path(path).suffix.lower() in SUFFIXES:
        return CaptionTable(path, on_error=on_error, **columns)
    elif not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such folder, shards or table of captions")
    else:
        raise ValueError(f"{path}: expected a folder, .tar shards or one of {', '.join(SUFFIXES)}")
    if given:
        raise ValueError(f"{', '.join(given)}: only tables of captions have columns, {path} is none")
    return reader


def captions_of(sample: VisualSample) -> tuple[str, ...]:
    """What is said about a picture, line breaks as blanks; may be nothing."""
    found = sample.meta.get("captions") or (sample.text,)
    return tuple(" ".join(caption.split()) for caption in found if caption.strip())
