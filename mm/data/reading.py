"""What all readers of recorded data share: one record at a time, and no bad record ever disappears silently.

A reader yields `VisualSample`s lazily. A record that can't be read either stops the pass with an error that names the
file and the record, or is logged by name, kept in `errors` and counted at the end of the pass.
"""

from __future__ import annotations

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Literal, Self

import numpy as np

from mm.data.sample import VisualSample

logger = logging.getLogger(__name__)
OnError = Literal["raise", "count"]
Record = tuple[str, Callable[[], VisualSample]]
"""(What messages call it, function that reads it)."""
Arrange = Callable[[Iterator[Record]], Iterator[Record]]


class Reader(ABC):
    """Base of all readers: iterate it as often as you like.

    Args:
        name: What messages call the source, usually its path.
        on_error: "raise" stops at the first record that can't be read; "count" logs it, goes on, and says at the end
            how many there were.

    Attributes:
        errors: One sentence per bad record of the latest pass.
        turn: Number of the pass, set by whoever makes several; for readers that draw at random.
    """

    def __init__(self, name: str, *, on_error: OnError = "raise") -> None:
        if on_error not in ("raise", "count"):
            raise ValueError(f"on_error must be 'raise' or 'count', got {on_error!r}")
        self.name = name
        self.on_error = on_error
        self.errors: list[str] = []
        self.turn = 0
        self._part = (0, 1)

    @abstractmethod
    def records(self) -> Iterator[Record]:
        """(Name of a record, function that reads it), without reading pictures yet."""

    def part(self, index: int, count: int) -> Self:
        """A reader of every `count`-th record from number `index` on: for workers and processes.

        Raises:
            ValueError: `index` is not in 0..count-1.
        """
        if not 0 <= index < count:
            raise ValueError(f"part must be in 0..{count - 1}, got {index}")
        first, step = self._part
        reader = copy.copy(self)
        reader._part = (first + step * index, step * count)
        reader.errors = []
        return reader

    def __iter__(self) -> RecordPass:
        return self.ordered()

    def ordered(self, arrange: Arrange | None = None, skip: int = 0) -> RecordPass:
        """One pass in another order.

        Args:
            arrange: From the records of this part to the same records in another order.
            skip: Records at the beginning of that order to leave out unread.
        """
        first, step = self._part
        records = islice(self.records(), first, None, step)
        return RecordPass(self, arrange(records) if arrange else records, skip)


class RecordPass(Iterator[VisualSample]):
    """One pass over a reader.

    Attributes:
        position: Records that were read or left out so far, bad ones included.
    """

    def __init__(self, reader: Reader, records: Iterator[Record], skip: int) -> None:
        self.reader = reader
        self.records = islice(records, skip, None)
        self.position = skip
        reader.errors = []

    def __next__(self) -> VisualSample:
        for place, read in self.records:
            self.position += 1
            try:
                return read()
            except (ValueError, OSError) as error:
                message = f"{place}: {error}"
                if self.reader.on_error == "raise":
                    raise ValueError(message) from error
                self.reader.errors.append(message)
                logger.warning("bad record %s", message)
        if self.reader.errors:
            bad = len(self.reader.errors)
            logger.warning("%s: %d of %d records could not be read", self.reader.name, bad, self.position)
        raise StopIteration


def read_picture(source: Any, **options: Any) -> np.ndarray:
    """A picture from a path, encoded bytes, an array, a PIL picture or `{"bytes": ..., "path": ...}`, (H, W, 3) uint8.

    Raises:
        ValueError: it is damaged, too large or of an unknown kind.
        FileNotFoundError: there is no such file.
    """
    from mm.vision.image_io import load_image

    if isinstance(source, dict):
        source = source.get("bytes") or source.get("path")
        if source is None:
            raise ValueError("the picture has neither bytes nor a path")
    return np.asarray(load_image(source, **options))
