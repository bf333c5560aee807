"""Your own scans and reports as training batches: any reader of `mm.medical`, split by patient.

Dims: B samples, N edge of the whole volume, M of the crop, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mm.checkpoint import write_aside
from mm.data.base_module import TrackedData
from mm.data.loading import Stream, TrackedLoader, worker
from mm.data.split import SplitName
from mm.medical.datasets import Record, read_ct_rate, read_decathlon, read_m3d, read_nnunet, split_records
from mm.medical.own_scans import read_own_scans
from mm.medical.tasks.cases import key_of
from mm.medical.tasks.scan_input import cube_of, input_window
from mm.medical.velvet.corruption import CorruptionConfig, make_views
from mm.medical.velvet.tokenizer import SentenceTokenizer
from mm.medical.velvet.volume_views import local_volume
from mm.medical.volumes.intensity import Intensity
from mm.medical.volumes.load import load_volume

Format = Literal["folder", "decathlon", "nnunet", "m3d", "ct_rate"]


@dataclass(frozen=True, kw_only=True)
class RecordsConfig:
    """Which scans and reports, and how they are divided."""

    format: Format = "folder"
    """folder: scans with a text file beside each, or with a table; decathlon: a list whose entries carry reports or
    labels; nnunet: a raw folder with labels; m3d, ct_rate: tables with reports."""
    path: str = ""
    """Folder, list or table."""
    table: str = ""
    """Format folder: CSV with the columns scan, report, patient instead of text files."""
    root: str = ""
    """Formats m3d and ct_rate: folder that paths start from; default: that of the table."""
    section: str = ""
    """Formats decathlon (training) and nnunet (Tr): which part of the list."""
    split_seed: int = 0
    """Of the split by patient."""
    validation: float = 0.1
    """Share of the patients held out for validation."""
    test: float = 0.1
    """Share of the patients held out for the test."""

    def __post_init__(self) -> None:
        known = ("folder", "decathlon", "nnunet", "m3d", "ct_rate")
        if self.format not in known:
            raise ValueError(f"format must be one of {', '.join(known)}, got {self.format!r}")
        for name, formats in (
            ("table", ("folder",)),
            ("root", ("m3d", "ct_rate")),
            ("section", ("decathlon", "nnunet")),
        ):
            if getattr(self, name) and self.format not in formats:
                raise ValueError(f"{name} is for {' and '.join(formats)}, got format {self.format!r}")
        if min(self.validation, self.test) < 0 or self.validation + self.test >= 1:
            raise ValueError(f"validation and test must leave a training part, got {self.validation} and {self.test}")


def read_records(config: RecordsConfig) -> list[Record]:
    """All records that a config names.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: no path, or not what the format says.
    """
    if not config.path:
        raise ValueError("no data was named; set data.init_args.config.records.path")
    if config.format == "folder":
        return read_own_scans(config.path, config.table or None)
    if config.format == "decathlon":
        return read_decathlon(config.path, config.section or "training")
    if config.format == "nnunet":
        return read_nnunet(config.path, config.section or "Tr")
    return (read_m3d if config.format == "m3d" else read_ct_rate)(config.path, config.root or None)


def split_of_records(config: RecordsConfig) -> dict[SplitName, list[Record]]:
    """Records by split; patients and equal reports stay together."""
    shares = {"train": 1 - config.validation - config.test, "validation": config.validation, "test": config.test}
    return split_records(read_records(config), seed=config.split_seed, fractions=shares)


@dataclass(frozen=True, kw_only=True)
class MedicalFolderConfig:
    """Batches of recorded scans."""

    records: RecordsConfig = field(default_factory=RecordsConfig)
    """Which scans."""
    size: int = 36
    """Edge of the whole volume (N), voxels: that of the model."""
    crop: int = 0
    """Edge of the crop for the self-supervised views (M), voxels of the squeezed scan; 0 leaves the views out."""
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    """How the views are destroyed."""
    window: str | None = None
    """Intensity window; none: -175..250 HU, 0..255 for grey values."""
    intensity: Intensity = "hu"
    """What the values must be: hu, grey (M3D), any (MR)."""
    cache: str = ""
    """Folder for the squeezed scans, so that each is read once; empty: kept in memory."""
    batch_size: int = 8
    """Samples per batch and process (B)."""
    train_batches: int = 100
    """Batches that count as one epoch of the trainer."""
    seed: int = 0
    """Of the order and the crops."""
    workers: int = 0
    """Loading processes."""

    def __post_init__(self) -> None:
        for name, least in (("size", 8), ("batch_size", 2), ("train_batches", 1), ("workers", 0), ("crop", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.crop > self.size:
            raise ValueError(f"crop must not be larger than size={self.size}, got {self.crop}")


class ScanCubes:
    """Squeezed scans by record, read once: in memory, or as float16 files in a folder.

    Args:
        config: Size, window, and where to keep them.
    """

    def __init__(self, config: MedicalFolderConfig) -> None:
        self.config = config
        self._kept: dict[Path, Tensor] = {}

    def __call__(self, record: Record) -> Tensor:
        """(1, N, N, N) float32 in 0..1."""
        if record.image in self._kept:
            return self._kept[record.image].float()
        place = self._file(record)
        if place is not None and place.is_file():
            return torch.from_numpy(np.load(place, allow_pickle=False)).float()
        config = self.config
        volume = load_volume(record.image, intensity=config.intensity)
        cube = cube_of(volume, config.size, input_window(volume, config.window))[0].half()
        if place is None:
            self._kept[record.image] = cube
        else:
            with write_aside(place) as temporary, temporary.open("wb") as file:
                np.save(file, cube.numpy(), allow_pickle=False)
        return cube.float()

    def _file(self, record: Record) -> Path | None:
        """Named by place, time and settings: no name of a patient, and no old content."""
        if not self.config.cache:
            return None
        stat = record.image.stat()
        stamp = (record.image.resolve(), stat.st_size, stat.st_mtime_ns, self.config.size, self.config.window)
        return Path(self.config.cache) / f"{key_of(repr(stamp))}.npy"


class RecordBatches(Stream):
    """Endless passes over shuffled records; the position is the number of batches that all processes have used."""

    def __init__(self, data: MedicalFolder, records: Sequence[Record], *, rank: int, world: int, position: int) -> None:
        self.data, self.records, self.rank, self.world, self.position = data, records, rank, world, position

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], int]]:
        number, workers = worker()
        batch = self.position + number * self.world + self.rank
        while True:
            yield self.data.batch(self._drawn(batch), batch), self.world
            batch += workers * self.world

    def _drawn(self, batch: int) -> list[Record]:
        """The records of a batch: a new order for every pass, the last batch of a pass runs into the next."""
        size, total = self.data.config.batch_size, len(self.records)
        places = range(batch * size, (batch + 1) * size)
        return [self.records[self._order(place // total)[place % total]] for place in places]

    def _order(self, run: int) -> list[int]:
        generator = np.random.default_rng([self.data.config.seed, run])
        return [int(index) for index in generator.permutation(len(self.records))]

    def advance(self, mark: int) -> None:
        self.position += mark


class MedicalFolder(TrackedData):
    """Lightning data module of recorded scans and reports; batches as `phantom_batch` of the phantoms makes them.

    Args:
        config: Which scans, and how they are prepared.
        processor: A `SentenceTokenizer`; default: that of the model that is trained.
    """

    def __init__(self, config: MedicalFolderConfig | None = None, processor: SentenceTokenizer | None = None) -> None:
        super().__init__(processor)
        self.config = config or MedicalFolderConfig()
        self.cubes = ScanCubes(self.config)
        self._splits: dict[SplitName, list[Record]] | None = None
        self.position = 0

    def split(self, name: SplitName) -> list[Record]:
        """Records of one split that have a report.

        Raises:
            ValueError: none has one.
        """
        if self._splits is None:
            self._splits = split_of_records(self.config.records)
        found = [record for record in self._splits[name] if record.report]
        if not found and name == "train":
            raise ValueError("no scan of the training part has a report: pre-training needs scans with their reports")
        return found

    def tokenizer(self) -> SentenceTokenizer:
        """The tokenizer that was given, or that of the model under training.

        Raises:
            ValueError: neither is there.
        """
        module = getattr(self.trainer, "lightning_module", None) if self.trainer is not None else None
        found = self.processor or getattr(getattr(module, "model", None), "tokenizer", None)
        if not isinstance(found, SentenceTokenizer):
            raise ValueError("no tokenizer: pass processor=SentenceTokenizer(...), or train a VelvetModel")
        return found

    def batch(self, records: Sequence[Record], number: int) -> dict[str, Tensor]:
        """`volume` (B, 1, N, N, N), the fields of `TokenBatch` (B, T), and the views if there is a crop."""
        scans = [self.cubes(record) for record in records]
        generator = torch.Generator().manual_seed(self.config.seed * 2**32 + number)
        tokens = self.tokenizer()([record.report for record in records], generator=generator)
        batch = {"volume": torch.stack(scans), **tokens.to_dict()}
        if self.config.crop:
            crops = torch.stack([local_volume(scan, self.config.crop, generator) for scan in scans])
            batch |= make_views(crops, generator, self.config.corruption).__dict__
        return batch

    def train_dataloader(self) -> DataLoader:
        records = self.split("train")
        stream = RecordBatches(self, records, rank=self.rank, world=self.world, position=self.position)
        self._loader = TrackedLoader(stream, batches=self.config.train_batches, workers=self.config.workers)
        return self._loader

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        return self._pass("validation") or []

    def test_dataloader(self) -> DataLoader:
        found = self._pass("test")
        if found is None:
            raise ValueError("the test part holds no scan with a report: name more patients, or raise records.test")
        return found

    def _pass(self, name: SplitName) -> DataLoader | None:
        """Batches of a held-out part; a last one of a single sample joins the one before it (contrast needs two)."""
        records, size = self.split(name), self.config.batch_size
        if len(records) < 2:
            return None
        parts = [records[start : start + size] for start in range(0, len(records), size)]
        if len(parts[-1]) == 1:
            parts[-2:] = [parts[-2] + parts[-1]]
        batches = [self.batch(part, number) for number, part in enumerate(parts)][self.rank :: self.world]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        stream = None if self._loader is None else self._loader.stream
        return {"position": stream.position if isinstance(stream, RecordBatches) else self.position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.position = int(state_dict["position"])
        if self._loader is not None:
            self._loader.stream.position = self.position
