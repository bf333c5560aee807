"""Recorded data for training: any reader, shuffled by a seed, divided among processes, resumable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch.utils.data import DataLoader

from mm.data.base_module import TrackedData
from mm.data.loading import Collate, Pass, Stream, TrackedLoader, pass_loader, worker
from mm.data.reading import OnError, Reader
from mm.data.sample import VisualSample

Format = Literal["llava", "messages", "folder", "webdataset", "datasets", "captions"]


@dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """Where recorded data lies and how it is loaded."""

    format: Format = "llava"
    """LLaVA JSON, chat messages as JSON lines, a folder of pictures, WebDataset shards, a saved Hugging Face data set,
    or a table of captions."""
    train: str = ""
    """File, folder or shards of the training data."""
    validation: str = ""
    """The same for validation."""
    test: str = ""
    """The same for the test."""
    images: str = ""
    """Folder of the pictures that records name; default: beside the record file."""
    columns: dict[str, str] | None = None
    """For `datasets`: which columns hold image, question, answer and text; for `captions`: image, caption and label."""
    on_error: OnError = "raise"
    """Stop at a bad record, or log and count it."""
    shuffle: int = 10_000
    """Records to shuffle among; 0 keeps the order of the file. Pictures are read after shuffling."""
    seed: int = 0
    """Seed of the order."""
    batch_size: int = 32
    """Samples per batch and process."""
    workers: int = 0
    """Loading processes."""
    train_batches: int = 1000
    """Batches that count as one epoch of the trainer; passes over the data follow each other without a break."""

    def __post_init__(self) -> None:
        if self.format not in READERS:
            raise ValueError(f"format must be one of {', '.join(READERS)}, got {self.format!r}")
        if self.images and self.format not in ("llava", "messages", "captions"):
            raise ValueError(
                f"images is for the formats llava, messages and captions; {self.format} finds pictures by itself"
            )
        if self.columns and self.format not in ("datasets", "captions"):
            raise ValueError(f"columns is for the formats datasets and captions, got format {self.format!r}")
        for name, least in (("batch_size", 1), ("train_batches", 1), ("workers", 0), ("shuffle", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


def _llava(path: str, config: FolderConfig) -> Reader:
    from mm.data.llava_json import LlavaJson

    return LlavaJson(path, config.images or None, on_error=config.on_error)


def _messages(path: str, config: FolderConfig) -> Reader:
    from mm.data.messages_jsonl import MessagesJsonl

    return MessagesJsonl(path, config.images or None, on_error=config.on_error)


def _folder(path: str, config: FolderConfig) -> Reader:
    from mm.data.image_folder import ImageFolder

    return ImageFolder(path, on_error=config.on_error)


def _webdataset(path: str, config: FolderConfig) -> Reader:
    from mm.data.webdataset import WebDatasetShards

    return WebDatasetShards(path, on_error=config.on_error)


def _datasets(path: str, config: FolderConfig) -> Reader:
    from mm.data.hf_datasets import HFDataset

    return HFDataset(Path(path), on_error=config.on_error, **(config.columns or {}))


def _captions(path: str, config: FolderConfig) -> Reader:
    from mm.data.caption_table import CaptionTable

    return CaptionTable(path, config.images or None, on_error=config.on_error, **(config.columns or {}))


READERS: dict[str, Callable[[str, FolderConfig], Reader]] = {
    "llava": _llava,
    "messages": _messages,
    "folder": _folder,
    "webdataset": _webdataset,
    "datasets": _datasets,
    "captions": _captions,
}


def shuffled(records: Iterable[Any], size: int, rng: np.random.Generator) -> Iterator[Any]:
    """Records in a random order; each trades places within a window of `size` records."""
    if size <= 1:
        yield from records
        return
    iterator = iter(records)
    window = list(islice(iterator, size))
    for record in iterator:
        place = int(rng.integers(size))
        yield window[place]
        window[place] = record
    yield from (window[index] for index in rng.permutation(len(window)))


class RecordStream(Stream):
    """Passes over a reader without end; each worker reads its own part of the records.

    The position is (pass, records read) of every part. Going on replays the order of the records without reading
    pictures; it needs the same number of workers and processes.
    """

    def __init__(
        self, reader: Reader, config: FolderConfig, collate: Collate, *, rank: int = 0, world: int = 1
    ) -> None:
        self.reader, self.config, self.collate = reader, config, collate
        self.rank, self.world = rank, world
        self.done: dict[int, tuple[int, int]] = {}

    def __iter__(self) -> Iterator[tuple[Any, tuple[int, int, int]]]:
        number, workers = worker()
        part = self.rank * workers + number
        group: list[VisualSample] = []
        for sample, run, read in self._samples(part, self.world * workers):
            group.append(sample)
            if len(group) == self.config.batch_size:
                yield self.collate(group), (part, run, read)
                group = []

    def _samples(self, part: int, parts: int) -> Iterator[tuple[VisualSample, int, int]]:
        """(sample, number of the pass, records read in it) without end."""
        run, read = self.done.get(part, (0, 0))
        reader = self.reader.part(part, parts)
        while True:
            reader.turn = run
            rng = np.random.default_rng([self.config.seed, run, part])
            order = reader.ordered(partial(shuffled, size=self.config.shuffle, rng=rng), skip=read)
            found = False
            for sample in order:
                found = True
                yield sample, run, order.position
            if not found and read == 0:
                raise ValueError(f"{self.reader.name}: part {part} of {parts} has no readable record")
            run, read = run + 1, 0

    def advance(self, mark: tuple[int, int, int]) -> None:
        part, run, read = mark
        self.done[part] = (run, read)


class FolderData(TrackedData):
    """Lightning data module over recorded data.

    Args:
        config: Where the data lies; `train` is needed to train, `validation` and `test` for those.
        processor: From samples to tensors; default: that of the model.

    Example:
        >>> FolderData(FolderConfig(train="records.json", images="pictures")).config.format
        'llava'
    """

    def __init__(self, config: FolderConfig, processor: Any = None) -> None:
        super().__init__(processor)
        self.config = config
        self._restored: dict[int, tuple[int, int]] = {}

    def reader(self, split: Literal["train", "validation", "test"]) -> Reader:
        """The reader of one split.

        Raises:
            ValueError: the config does not name it.
        """
        path = getattr(self.config, split)
        if not path:
            raise ValueError(f"no {split} data was named; set data.init_args.config.{split}")
        return READERS[self.config.format](path, self.config)

    def train_dataloader(self) -> DataLoader:
        stream = RecordStream(self.reader("train"), self.config, self.collate_for(), rank=self.rank, world=self.world)
        stream.done = dict(self._restored)
        self._loader = TrackedLoader(stream, batches=self.config.train_batches, workers=self.config.workers)
        return self._loader

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        return self._pass("validation") if self.config.validation else []

    def test_dataloader(self) -> DataLoader:
        return self._pass("test")

    def predict_dataloader(self) -> DataLoader:
        """The test questions without their answers."""
        return self._pass("test", answers=False)

    def _pass(self, split: Literal["validation", "test"], *, answers: bool = True) -> DataLoader:
        samples = Pass(
            self.reader(split).part,
            self.config.batch_size,
            self.collate_for(answers=answers),
            rank=self.rank,
            world=self.world,
        )
        return pass_loader(samples, workers=self.config.workers)

    def state_dict(self) -> dict[str, Any]:
        done = self._restored if self._loader is None else self._of_all_processes(self._loader.stream.done)
        parts = max(1, self.config.workers) * self.world
        return {"done": {str(part): list(place) for part, place in done.items()}, "parts": parts}

    def _of_all_processes(self, done: dict[int, tuple[int, int]]) -> dict[int, tuple[int, int]]:
        """Only the first process writes a checkpoint, so it needs to know where the others stand."""
        from torch import distributed

        if self.world == 1 or not distributed.is_initialized():
            return done
        everywhere: list[Any] = [None] * self.world
        distributed.all_gather_object(everywhere, done)
        return {part: place for one in everywhere for part, place in one.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        parts = max(1, self.config.workers) * self.world
        if state_dict["parts"] != parts:
            raise ValueError(
                f"the run was divided into {state_dict['parts']} parts (workers x processes), now it is {parts}; "
                "resume with the same numbers, or begin a new run from the weights"
            )
        self._restored = {int(part): (place[0], place[1]) for part, place in state_dict["done"].items()}
        if self._loader is not None:
            self._loader.stream.done = dict(self._restored)
