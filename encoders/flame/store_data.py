"""Training from stores: recorded pictures beside the embeddings of their captions; no language model in sight.

    mm fit --config flame/stored --data.config.train captions.jsonl --data.config.stores '[long.store, short.store]'

A picture's rows are those of all its captions in all stores that hold them; P of them are drawn anew in every epoch.
So the authors' eleven rows are three stores: the raw caption under "single", the short one under "short", the long one
under "long".
Dims: B pairs, P positives, D width, H, W picture size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mm.data.folder_module import FolderConfig, FolderData, Format, RecordStream
from mm.data.loading import TrackedLoader
from mm.data.reading import Reader, Record
from mm.data.sample import VisualSample
from mm.encoders.flame.evaluation.sources import captions_of
from mm.encoders.flame.positives import draw_positives
from mm.encoders.flame.store import FacetStore


@dataclass(frozen=True, kw_only=True)
class StoredPairsConfig(FolderConfig):
    """Where pictures and captions lie, and where the embeddings are."""

    format: Format = "captions"
    """A table of captions; or folder, webdataset, datasets."""
    stores: tuple[str, ...] = ()
    """Folders that `mm flame embed` wrote, all with the same text tower."""
    positives: int = 6
    """Rows drawn per picture and step (P)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positives < 1:
            raise ValueError(f"positives must be at least 1, got {self.positives}")


class StoredRows:
    """The rows that belong to the captions of a picture, over several stores.

    Args:
        folders: The stores.

    Raises:
        ValueError: no store, or stores of different text towers.
    """

    def __init__(self, folders: Sequence[str]) -> None:
        if not folders:
            raise ValueError("no store was named; write one with mm flame embed and set data.init_args.config.stores")
        self.stores = [FacetStore(folder) for folder in folders]
        first = self.stores[0]
        for store in self.stores:
            if store.identity["text_tower"] != first.identity["text_tower"]:
                raise ValueError(
                    f"{store.folder} and {first.folder} were built with different text towers "
                    f"({store.identity['text_tower']} and {first.identity['text_tower']}); embed both with one"
                )
        self.width = first.width

    def of(self, captions: Sequence[str]) -> list[tuple[int, str, int]]:
        """(Store, caption, facet) of every row there is, in the order of captions, stores and facets."""
        held = [(number, text) for text in captions for number, store in enumerate(self.stores) if text in store]
        return [(number, text, facet) for number, text in held for facet in range(self.stores[number].facets)]

    def draw(self, captions: Sequence[Sequence[str]], positives: int, generator: torch.Generator) -> Tensor:
        """P different rows for every picture, each choice equally likely.

        Args:
            captions: Of each picture.
            positives: Rows per picture (P).
            generator: What draws.

        Returns:
            Unit rows, (B, P, D) float32.

        Raises:
            ValueError: a picture has fewer rows than are to be drawn.
        """
        chosen: list[tuple[int, str, int]] = []
        for own in captions:
            rows = self.of(own)
            chosen += [rows[index] for index in draw_positives(1, len(rows), positives, generator)[0].tolist()]
        found = torch.empty(len(chosen), self.width)
        for number, store in enumerate(self.stores):
            places = [place for place, row in enumerate(chosen) if row[0] == number]
            if places:
                facets = torch.tensor([[chosen[place][2]] for place in places])
                found[places] = store.rows([chosen[place][1] for place in places], facets)[:, 0].float()
        return torch.nn.functional.normalize(found, dim=-1).unflatten(0, (len(captions), positives))


class StoredReader(Reader):
    """Passes on the samples of a reader that can be trained on; others are bad records, raised or counted.

    Args:
        reader: Where samples come from.
        rows: What is stored.
        positives: Rows that a picture needs.
    """

    def __init__(self, reader: Reader, rows: StoredRows, positives: int) -> None:
        super().__init__(reader.name, on_error=reader.on_error)
        self.reader, self.rows, self.positives = reader, rows, positives

    def records(self) -> Iterator[Record]:
        for place, read in self.reader.records():
            yield place, partial(self._checked, read)

    def _checked(self, read: Callable[[], VisualSample]) -> VisualSample:
        sample = read()
        captions = captions_of(sample)
        if len(sample.images) != 1:
            raise ValueError(f"a pair has one picture, this sample has {len(sample.images)}")
        if not captions:
            raise ValueError("the picture has no caption")
        held = len(self.rows.of(captions))
        if held < self.positives:
            raise ValueError(
                f"the stores hold {held} rows of this picture's {len(captions)} captions, {self.positives} are drawn; "
                "embed the captions with mm flame embed, or lower positives"
            )
        return sample


class StoredStream(RecordStream):
    """Batches of pairs; what is drawn depends on the seed and the place in the data alone."""

    make: Callable[[Sequence[VisualSample], list[int]], dict[str, Tensor]]

    def __iter__(self) -> Iterator[tuple[Any, tuple[int, int, int]]]:
        for samples, mark in super().__iter__():
            yield self.make(samples, [self.config.seed, *mark]), mark


class StoredPairs(FolderData):
    """Batches of `pixel_values` (B, 3, H, W) and `texts` (B, P, D) float32 of unit length.

    Args:
        config: What is read.
        processor: Picture preprocessing; default: that of the model under training.
    """

    config: StoredPairsConfig

    def __init__(self, config: StoredPairsConfig, processor: Any = None) -> None:
        super().__init__(config, processor)
        self._rows: StoredRows | None = None

    @property
    def rows(self) -> StoredRows:
        """The stores, opened when first needed.

        Raises:
            ValueError: they don't fit each other or the model under training.
        """
        if self._rows is None:
            self._rows = StoredRows(self.config.stores)
            model = getattr(getattr(self.trainer, "lightning_module", None), "model", None)
            if model is not None and model.width != self._rows.width:
                raise ValueError(f"the stores have {self._rows.width} channels, the model has {model.width}")
        return self._rows

    def reader(self, split: Literal["train", "validation", "test"]) -> Reader:
        return StoredReader(super().reader(split), self.rows, self.config.positives)

    def train_dataloader(self) -> DataLoader:
        stream = StoredStream(self.reader("train"), self.config, list, rank=self.rank, world=self.world)
        stream.make = self._batch
        stream.done = dict(self._restored)
        self._loader = TrackedLoader(stream, batches=self.config.train_batches, workers=self.config.workers)
        return self._loader

    def collate_for(self, *, answers: bool = True) -> Any:
        """Batches of validation and test: the same draw in every pass."""
        return partial(self._batch, seed=[self.config.seed])

    def _batch(self, samples: Sequence[VisualSample], seed: list[int]) -> dict[str, Tensor]:
        processor = self.find_processor()
        if processor is None:
            raise ValueError("StoredPairs needs a picture processor: pass processor=..., or train a FlameModule")
        number = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1)
        generator = torch.Generator().manual_seed(number)
        texts = self.rows.draw([captions_of(sample) for sample in samples], self.config.positives, generator)
        return {"pixel_values": processor([sample.images[0] for sample in samples]), "texts": texts}
