"""Recorded programs for training: what `mm cad dataset` writes, without the samples that are too long for the model.

A program that is cut teaches programs without an end, so a sample fits as a whole or is left out and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

from mm.data.collate import answer_of, conversation_of
from mm.data.folder_module import FolderData
from mm.data.reading import Reader, Record
from mm.data.sample import VisualSample


class FittingRecords(Reader):
    """Records of another reader that the model can read and answer as a whole.

    Args:
        inner: Where the records come from; its `on_error` says what becomes of those that do not fit.
        processor: Of the model.
    """

    def __init__(self, inner: Reader, processor: Any) -> None:
        super().__init__(inner.name, on_error=inner.on_error)
        self.inner, self.processor = inner, processor

    def records(self) -> Iterator[Record]:
        for place, read in self.inner.records():
            yield place, partial(self._fitting, read)

    def _fitting(self, read: Callable[[], VisualSample]) -> VisualSample:
        """The sample.

        Raises:
            ValueError: it is longer than the language model has positions.
        """
        sample = read()
        self.processor.encode(conversation_of(sample), [1] * len(sample.images), answer=answer_of(sample))
        return sample


class ProgramRecords(FolderData):
    """`mm.data.FolderData` whose samples all fit the model; set `on_error: count` to leave out those that do not."""

    def reader(self, split: Literal["train", "validation", "test"]) -> Reader:
        """The reader of one split.

        Raises:
            ValueError: the config does not name it.
        """
        inner, processor = super().reader(split), self.find_processor()
        return inner if processor is None else FittingRecords(inner, processor)
