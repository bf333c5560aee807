"""Hugging Face `datasets`: any table with pictures and text columns."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from mm.data.conversation import chat_messages, conversation_sample, llava_messages
from mm.data.llava_json import as_list
from mm.data.reading import OnError, Reader, Record, read_picture
from mm.data.sample import VisualSample
from mm.extras import require

CONVERSATIONS = {"messages": chat_messages, "conversations": llava_messages}
"""Columns that hold whole conversations -> their reader."""


class HFDataset(Reader):
    """Reads a table row by row; pictures are decoded by this toolkit, so a damaged one is a bad record, not a crash.

    A column `messages` or `conversations` holds a whole conversation; otherwise `question`, `answer` and `text` name
    the columns to use.

    Args:
        data: A `Dataset` or `IterableDataset`, or the folder of one that was written by `save_to_disk`.
        image: Column of the picture or the list of pictures.
        question: Column of the question.
        answer: Column of the answer; a class label becomes its name.
        text: Column of the caption.
        on_error: What to do with a bad row.

    Raises:
        ImportError: the library is missing; it is part of the `train` extra.
        FileNotFoundError: no such folder.
        ValueError: a named column does not exist, or no known column does.
    """

    def __init__(
        self,
        data: Any,
        *,
        image: str = "image",
        question: str | None = None,
        answer: str | None = None,
        text: str | None = None,
        on_error: OnError = "raise",
    ) -> None:
        library = require("datasets", extra="train", purpose="Reading Hugging Face data sets")
        super().__init__(str(data) if isinstance(data, str | Path) else "data set", on_error=on_error)
        self.image = image
        self.columns = {"question": question, "answer": answer, "text": text}
        self.data = self._undecoded(library, _open(library, data))
        self.conversation = next((name for name in CONVERSATIONS if name in self.data.features), None)
        self._check()

    def _undecoded(self, library: Any, data: Any) -> Any:
        """The table with pictures left as bytes; feature types are known without reading a row."""
        if data.features is None:
            raise ValueError("the data set does not know its columns; call its `_resolve_features()` or give features")
        feature = data.features.get(self.image)
        if isinstance(feature, library.Image):
            return data.cast_column(self.image, library.Image(decode=False))
        if isinstance(getattr(feature, "feature", None), library.Image):
            return data.cast_column(self.image, library.List(library.Image(decode=False)))
        return data

    def _check(self) -> None:
        columns = list(self.data.features)
        named = [name for name in self.columns.values() if name is not None]
        missing = [name for name in named if name not in columns]
        if missing or not (named or self.conversation):
            problem = f"no column {', '.join(missing)}" if missing else "no column with text was named"
            raise ValueError(f"{self.name}: {problem}; the data set has {', '.join(columns)}")

    def records(self) -> Iterator[Record]:
        if hasattr(self.data, "__len__"):
            for index in range(len(self.data)):
                yield f"{self.name}: row {index}", partial(self._read_row, index)
        else:
            for index, row in enumerate(self.data):
                yield f"{self.name}: row {index}", partial(self._read, row, index)

    def _read_row(self, index: int) -> VisualSample:
        return self._read(self.data[index], index)

    def _read(self, row: dict[str, Any], index: int) -> VisualSample:
        images = as_list(row.get(self.image))
        meta = {"file": self.name, "index": index}
        if self.conversation:
            messages = CONVERSATIONS[self.conversation](row[self.conversation])
            return conversation_sample(messages, images, read_picture, meta)
        words = {field: self._words(row, column) for field, column in self.columns.items()}
        return VisualSample([read_picture(image) for image in images], **words, meta=meta)

    def _words(self, row: dict[str, Any], column: str | None) -> str:
        if column is None:
            return ""
        value, feature = row[column], self.data.features[column]
        if hasattr(feature, "int2str") and isinstance(value, int):
            return feature.int2str(value)
        if not isinstance(value, str):
            raise ValueError(f"column {column!r} must hold text, got {value!r}")
        return value.strip()


def _open(library: Any, data: Any) -> Any:
    if not isinstance(data, str | Path):
        return data
    if not Path(data).is_dir():
        raise FileNotFoundError(f"{data}: no such folder of a saved data set; load it and pass the object instead")
    loaded = library.load_from_disk(str(data))
    if isinstance(loaded, dict):
        raise ValueError(f"{data}: holds the splits {', '.join(loaded)}; pass the folder of one of them")
    return loaded
