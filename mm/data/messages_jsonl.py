"""Chat data as JSON lines: `{"messages": [{"role": "user", "content": "<image> ..."}, ...], "images": ["a.jpg"]}`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from mm.data.conversation import chat_messages, conversation_sample
from mm.data.llava_json import as_list
from mm.data.reading import OnError, Reader, Record, read_picture
from mm.data.sample import VisualSample


class MessagesJsonl(Reader):
    """Reads one conversation per line; blank lines are no records.

    The content of a message is text or a list of parts (`{"type": "text", "text": ...}`, `{"type": "image"}`). A
    conversation that ends with the user has an empty answer.

    Args:
        path: The file.
        images: Folder that picture names are relative to; default: the folder of the file.
        on_error: What to do with a bad line.

    Raises:
        FileNotFoundError: no such file (when read).
    """

    def __init__(self, path: str | Path, images: str | Path | None = None, *, on_error: OnError = "raise") -> None:
        super().__init__(str(path), on_error=on_error)
        self.path = Path(path)
        self.images = Path(images) if images is not None else self.path.parent

    def records(self) -> Iterator[Record]:
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such file of chat records")
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{self.path}: line {number}", partial(self._read, line, number)

    def _read(self, line: bytes, number: int) -> VisualSample:
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"not valid JSON ({error})") from error
        if not isinstance(record, dict):
            raise ValueError(f"expected an object with 'messages', got {type(record).__name__}")
        meta = {"file": str(self.path), "index": number}
        messages = chat_messages(record.get("messages"))
        names = as_list(record.get("images"))
        return conversation_sample(messages, names, lambda name: read_picture(self.images / name), meta)
