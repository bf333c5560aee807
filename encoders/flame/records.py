"""Recorded pictures for training, beside stores of embeddings that were written once with `mm flame embed`.

Pictures lie in a folder, in WebDataset shards or in a table of captions. A picture's rows are all facets of all its
captions that the stores hold; the published layout is three stores, of raw captions under the single template, of short
and of long ones under theirs.
Dims: B pictures per batch and process, P positives, D width, H = W picture side.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mm.data import VisualSample
from mm.data.base_module import TrackedData
from mm.data.folder_module import FolderConfig, RecordStream
from mm.data.loading import Pass, TrackedLoader, pass_loader
from mm.data.reading import OnError, Reader
from mm.encoders.flame.evaluation.sources import captions_of, open_source
from mm.encoders.flame.positives import draw_positives
from mm.encoders.flame.store import FacetStore


@dataclass(frozen=True, kw_only=True)
class FlameRecordsConfig:
    """Where pictures and stored embeddings lie."""

    train: str = ""
    """Folder, .tar shards or table of captions (.csv, .tsv, .json, .jsonl)."""
    validation: str = ""
    """The same for validation."""
    images: str | None = None
    """Folder of the pictures that a table names."""
    caption: str | None = None
    """Column of the captions in a table."""
    stores: tuple[str, ...] = ()
    """Folders that `mm flame embed` wrote, all with the same text tower."""
    positives: int = 6
    """Texts per picture and step (P)."""
    batch_size: int = 32
    """Pictures per batch and process (B)."""
    shuffle: int = 10_000
    """Records to shuffle among."""
    workers: int = 0
    """Loading processes."""
    train_batches: int = 1000
    """Batches that count as one epoch of the trainer."""
    on_error: OnError = "raise"
    """Stop at a record that can't be read, or log and count it."""
    seed: int = 0
    """Seed of the order and of the draws."""

    def __post_init__(self) -> None:
        if not self.stores:
            raise ValueError("stores: name at least one folder of text embeddings; mm flame embed writes them")
        if self.positives < 1 or self.batch_size < 2:
            raise ValueError(
                f"positives must be at least 1 and batch_size 2, got {self.positives} and {self.batch_size}"
            )


class FlameRecords(TrackedData):
    """Batches of `pixel_values` (B, 3, H, W) float and `texts` (B, P, D) float32 from recorded data.

    Args:
        config: Where everything lies.
        processor: Picture preprocessing; default: that of the model under training.
    """

    def __init__(self, config: FlameRecordsConfig, processor: Any = None) -> None:
        super().__init__(processor)
        self.config = config
        self._restored: dict[int, tuple[int, int]] = {}

    def reader(self, split: str) -> Reader:
        """The reader of one split.

        Raises:
            ValueError: the config does not name it.
        """
        path = getattr(self.config, split)
        if not path:
            raise ValueError(f"no {split} data was named; set data.init_args.config.{split}")
        config = self.config
        return open_source(path, images=config.images, caption=config.caption, on_error=config.on_error)

    def paired(self) -> PairedTexts:
        """Function from samples to a batch.

        Raises:
            ValueError: no processor, or stores of different text towers.
        """
        processor = self.find_processor()
        if processor is None:
            raise ValueError("FlameRecords needs a picture processor: pass processor=..., or train a FlameModule")
        return PairedTexts(open_stores(self.config.stores), processor, self.config.positives, self.config.seed)

    def train_dataloader(self) -> DataLoader:
        config = self.config
        loading = FolderConfig(batch_size=config.batch_size, shuffle=config.shuffle, seed=config.seed)
        stream = RecordStream(self.reader("train"), loading, self.paired(), rank=self.rank, world=self.world)
        stream.done = dict(self._restored)
        self._loader = TrackedLoader(stream, batches=config.train_batches, workers=config.workers)
        return self._loader

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        if not self.config.validation:
            return []
        part, size = self.reader("validation").part, self.config.batch_size
        return pass_loader(Pass(part, size, self.paired(), rank=self.rank, world=self.world))

    def state_dict(self) -> dict[str, Any]:
        done = self._restored if self._loader is None else self._loader.stream.done
        return {"done": {str(part): list(place) for part, place in done.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = {int(part): (place[0], place[1]) for part, place in state_dict["done"].items()}
        if self._loader is not None:
            self._loader.stream.done = dict(self._restored)


def open_stores(folders: Sequence[str | Path]) -> list[FacetStore]:
    """Stores that belong together.

    Raises:
        FileNotFoundError: no store there.
        ValueError: they were built with different text towers.
    """
    stores = [FacetStore(folder) for folder in folders]
    towers = {str(store.folder): store.identity["text_tower"] for store in stores}
    if len(set(towers.values())) > 1:
        listed = ", ".join(f"{folder} ({tower})" for folder, tower in towers.items())
        raise ValueError(f"the stores hold embeddings of different text towers: {listed}; build them with one")
    return stores


class PairedTexts:
    """From samples to a batch; which rows are drawn depends on the seed and on the samples alone.

    Args:
        stores: Text embeddings.
        processor: Pictures -> `pixel_values`.
        positives: Rows per picture (P).
        seed: Of the draws.
    """

    def __init__(self, stores: Sequence[FacetStore], processor: Any, positives: int, seed: int) -> None:
        self.stores, self.processor, self.positives, self.seed = stores, processor, positives, seed

    def __call__(self, samples: Sequence[VisualSample]) -> dict[str, Tensor]:
        choices = [self._choices(sample) for sample in samples]
        words = "\n".join(caption for rows in choices for _, caption, _ in rows)
        generator = torch.Generator().manual_seed(zlib.crc32(words.encode()) + self.seed)
        drawn = [
            rows[number]
            for rows in choices
            for number in draw_positives(1, len(rows), self.positives, generator)[0].tolist()
        ]
        texts = torch.empty(len(drawn), self.stores[0].width)
        for index, store in enumerate(self.stores):
            mine = [place for place, (where, _, _) in enumerate(drawn) if where == index]
            if mine:
                picked = torch.tensor([[drawn[place][2]] for place in mine])
                texts[mine] = store.rows([drawn[place][1] for place in mine], picked)[:, 0].float()
        pixels = self.processor([sample.images[0] for sample in samples])
        return {"pixel_values": pixels, "texts": texts.unflatten(0, (len(samples), self.positives))}

    def _choices(self, sample: VisualSample) -> list[tuple[int, str, int]]:
        """(store, caption, facet) of every row that the sample may draw."""
        name = sample.meta.get("file") or sample.meta.get("id") or sample.meta
        if len(sample.images) != 1:
            raise ValueError(f"{name}: training pairs need one picture, got {len(sample.images)}")
        captions = captions_of(sample)
        if not captions:
            raise ValueError(f"{name}: has no caption; text files beside the pictures or a column give them")
        rows = [
            (index, caption, facet)
            for index, store in enumerate(self.stores)
            for caption in captions
            if caption in store
            for facet in range(store.facets)
        ]
        if len(rows) < self.positives:
            folders = ", ".join(str(store.folder) for store in self.stores)
            raise ValueError(
                f"{name}: {self.positives} positives are asked for, {folders} hold {len(rows)} rows of its captions; "
                "embed them (mm flame embed), or set data.init_args.config.positives"
            )
        return rows
