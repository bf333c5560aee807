"""LLaVA instruction files: one JSON list of records with `image` and `conversations`, beside a folder of pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from mm.data.conversation import conversation_sample, llava_messages
from mm.data.reading import OnError, Reader, Record, read_picture
from mm.data.sample import VisualSample


def as_list(value: Any) -> list[Any]:
    """A missing value is no picture, a single one is a list of one."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


class LlavaJson(Reader):
    """Reads `[{"id": ..., "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\n..."}, ...]}]`.

    `image` may be a list of names, or be missing for text-only records. One sample is one whole conversation.

    Args:
        path: The JSON file, a list or one record per line.
        images: Folder of the pictures; default: the folder of the JSON file.
        on_error: What to do with a bad record.

    Raises:
        FileNotFoundError: no such file (when read).
        ValueError: the file is no list of records (when read).
    """

    def __init__(self, path: str | Path, images: str | Path | None = None, *, on_error: OnError = "raise") -> None:
        super().__init__(str(path), on_error=on_error)
        self.path = Path(path)
        self.images = Path(images) if images is not None else self.path.parent

    def records(self) -> Iterator[Record]:
        for index, record in enumerate(self._load()):
            known = f" (id {record['id']})" if isinstance(record, dict) and "id" in record else ""
            yield f"{self.path}: record {index}{known}", partial(self._read, record, index)

    def _load(self) -> list[Any]:
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such file of LLaVA records")
        try:
            records = json.loads(self.path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.path}: not valid JSON ({error})") from error
        if not isinstance(records, list):
            raise ValueError(f"{self.path}: expected a list of records, got {type(records).__name__}")
        return records

    def _read(self, record: Any, index: int) -> VisualSample:
        if not isinstance(record, dict):
            raise ValueError(f"expected a record with 'conversations', got {type(record).__name__}")
        if "video" in record:
            raise ValueError("holds a video; extract frames and list them under 'image'")
        names = as_list(record.get("image"))
        meta = {"file": str(self.path), "index": index, "id": record.get("id")}
        messages = llava_messages(record.get("conversations"))
        return conversation_sample(messages, names, lambda name: read_picture(self.images / name), meta)
