"""Labelled scans as training crops for a segmenter: Decathlon lists and nnU-Net folders, split by patient.

Dims: B crops, P edge of a crop, X Y Z voxels of the working grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from mm.data.base_module import TrackedData
from mm.data.loading import Stream, TrackedLoader, worker
from mm.data.split import SplitName
from mm.extras import require
from mm.medical.datasets import Record
from mm.medical.folder_data import RecordsConfig, split_of_records
from mm.medical.volumes.intensity import Intensity
from mm.medical.volumes.load import load_volume
from mm.medical.volumes.orientation import to_ras
from mm.medical.volumes.privacy import alias, quiet
from mm.medical.volumes.volume import Volume
from mm.medical.volumes.working_grid import WorkingGrid


@dataclass(frozen=True, kw_only=True)
class LabelledConfig:
    """Crops of labelled scans."""

    records: RecordsConfig = field(default_factory=lambda: RecordsConfig(format="nnunet"))
    """Which scans; formats decathlon and nnunet."""
    intensity: Intensity = "hu"
    """What the values must be."""
    crops_per_scan: int = 2
    """Crops of each scan that a batch takes, as published: in turns around a labelled voxel and anywhere."""
    batch_size: int = 2
    """Scans per batch and process; published: 2."""
    flips: float = 0.1
    """Probability of a mirror image along each axis, as published."""
    turns: float = 0.1
    """Probability of a quarter turn in the axial plane, as published."""
    shift: float = 0.1
    """Largest shift of the scaled intensities, as published; it happens to every second crop."""
    cached_scans: int = 16
    """Prepared scans that stay in memory."""
    train_batches: int = 100
    """Batches that count as one epoch of the trainer."""
    seed: int = 0
    """Of the order and the crops."""
    workers: int = 0
    """Loading processes."""

    def __post_init__(self) -> None:
        for name, least in (("crops_per_scan", 1), ("batch_size", 1), ("train_batches", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.records.format not in ("decathlon", "nnunet"):
            raise ValueError(f"labelled scans come as decathlon or nnunet, got {self.records.format!r}")


@dataclass(frozen=True)
class LabelledScan:
    """A scan and its labels on the working grid."""

    image: Tensor
    """(1, X, Y, Z) float32 in 0..1."""
    labels: Tensor
    """(1, X, Y, Z) uint8."""


def read_labels(path: Path, volume: Volume) -> NDArray[Any]:
    """Label map of a scan, brought to its axis order.

    Raises:
        ValueError: it lies on another grid, or holds values that are no labels.
    """
    nibabel = require("nibabel", extra="medical", purpose="Reading labels")
    where = f"label file {alias(path)}"
    try:
        with quiet():
            image = nibabel.load(path)
            values = np.asarray(image.dataobj)
    except Exception:
        raise ValueError(f"{where} can't be read; copy or export it again") from None
    if values.shape != volume.native_shape or not np.allclose(image.affine, volume.native_affine, atol=1e-2):
        raise ValueError(
            f"{where} has {'x'.join(map(str, values.shape))} voxels, its scan "
            f"{'x'.join(map(str, volume.native_shape))}; both must lie on one grid"
        )
    if values.min() < 0 or values.max() > 255 or (values != np.rint(values)).any():
        raise ValueError(f"{where} holds values that are no labels 0..255")
    return to_ras(values.astype(np.uint8), volume.native_affine)[0]


def prepare(volume: Volume, labels: NDArray[Any], grid: WorkingGrid) -> LabelledScan:
    """Scan and labels through the same steps, labels by nearest neighbours."""
    transforms = require("monai.transforms", extra="medical", purpose="Labelled scans")
    prepared = grid.prepare(volume)
    resize = transforms.Resize(spatial_size=grid.size_for(volume), mode="nearest-exact")
    moved = resize(torch.from_numpy(np.ascontiguousarray(labels))[None].float())
    for step in prepared.steps.transforms[1:]:
        moved = step(moved)
    plain = moved.as_tensor() if hasattr(moved, "as_tensor") else moved
    return LabelledScan(prepared.image.as_tensor(), plain.to(torch.uint8))


def crop(scan: LabelledScan, edge: int, generator: np.random.Generator, *, labelled: bool) -> tuple[Tensor, Tensor]:
    """A cube of a scan, (1, P, P, P) each; around a labelled voxel if one is asked for and there is one."""
    shape = np.array(scan.image.shape[1:])
    highest = shape - edge
    if (highest < 0).any():
        raise ValueError(f"the working grid {tuple(shape.tolist())} is smaller than a crop of {edge}")
    place = generator.integers(0, highest + 1)
    if labelled and bool(scan.labels.any()):
        marked = scan.labels[0].nonzero()
        place = np.clip(marked[int(generator.integers(len(marked)))].numpy() - edge // 2, 0, highest)
    x, y, z = (slice(int(start), int(start) + edge) for start in place)
    return scan.image[:, x, y, z], scan.labels[:, x, y, z]


class LabelledScans(TrackedData):
    """Lightning data module of crops: `image` (B, 1, P, P, P) float32, `labels` (B, 1, P, P, P) int64.

    Args:
        config: Which scans, and how crops are drawn.
        processor: A `Segmenter`, which states working grid and edge; default: the model that is trained.
    """

    def __init__(self, config: LabelledConfig | None = None, processor: Any = None) -> None:
        super().__init__(processor)
        self.config = config or LabelledConfig()
        self.prepared = lru_cache(maxsize=self.config.cached_scans)(self._prepared)
        self._splits: dict[SplitName, list[Record]] | None = None
        self.position = 0

    def segmenter(self) -> Any:
        """Whose grid is used.

        Raises:
            ValueError: no segmenter was given and none is trained.
        """
        module = getattr(self.trainer, "lightning_module", None) if self.trainer is not None else None
        found = self.processor if self.processor is not None else getattr(module, "model", None)
        if not hasattr(found, "grid"):
            raise ValueError("no segmenter: pass processor=Segmenter(...), or train one")
        return found

    def split(self, name: SplitName) -> list[Record]:
        """Records of one split that have a label."""
        if self._splits is None:
            self._splits = split_of_records(self.config.records)
        found = [record for record in self._splits[name] if record.label is not None]
        if not found and name == "train":
            raise ValueError("no scan of the training part has a label")
        return found

    def _prepared(self, image: Path, label: Path) -> LabelledScan:
        volume = load_volume(image, intensity=self.config.intensity)
        labels = read_labels(label, volume)
        known = len(self.segmenter().labels)
        if labels.max() >= known:
            raise ValueError(f"label file {alias(label)} holds the value {labels.max()}, the network {known} labels")
        return prepare(volume, labels, self.segmenter().grid)

    def batch(self, records: Sequence[Record], number: int, *, augment: bool) -> dict[str, Tensor]:
        """Crops of some scans."""
        generator = np.random.default_rng([self.config.seed, number, int(augment)])
        edge = self.segmenter().config.patch
        images, labels = [], []
        for record in records:
            assert record.label is not None
            scan = self.prepared(record.image, record.label)
            for turn in range(self.config.crops_per_scan):
                image, label = crop(scan, edge, generator, labelled=turn % 2 == 0)
                if augment:
                    image, label = self._augmented(image, label, generator)
                images.append(image)
                labels.append(label)
        return {"image": torch.stack(images), "labels": torch.stack(labels).long()}

    def _augmented(self, image: Tensor, label: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """The same mirror images and turns for both, a shift of the intensities for the image."""
        axes = [axis for axis in (1, 2, 3) if generator.random() < self.config.flips]
        turns = int(generator.integers(1, 4)) if generator.random() < self.config.turns else 0
        image, label = (torch.rot90(one.flip(axes), turns, (1, 2)) for one in (image, label))
        if generator.random() < 0.5:
            image = image + float(generator.uniform(-self.config.shift, self.config.shift))
        return image, label

    def train_dataloader(self) -> DataLoader:
        stream = _Crops(self, self.split("train"), rank=self.rank, world=self.world, position=self.position)
        self._loader = TrackedLoader(stream, batches=self.config.train_batches, workers=self.config.workers)
        return self._loader

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        return self._fixed("validation") if self.split("validation") else []

    def test_dataloader(self) -> DataLoader:
        return self._fixed("test")

    def _fixed(self, name: SplitName) -> DataLoader:
        records, size = self.split(name), self.config.batch_size
        starts = range(0, len(records), size)
        batches = [self.batch(records[at : at + size], at, augment=False) for at in starts][self.rank :: self.world]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        stream = None if self._loader is None else self._loader.stream
        return {"position": stream.position if isinstance(stream, _Crops) else self.position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.position = int(state_dict["position"])
        if self._loader is not None:
            self._loader.stream.position = self.position


class _Crops(Stream):
    """Endless passes over shuffled scans; the position is the number of batches that all processes have used."""

    def __init__(self, data: LabelledScans, records: Sequence[Record], *, rank: int, world: int, position: int) -> None:
        self.data, self.records, self.rank, self.world, self.position = data, records, rank, world, position

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], int]]:
        number, workers = worker()
        batch, size, total = self.position + number * self.world + self.rank, self.data.config.batch_size, 0
        total = len(self.records)
        while True:
            places = range(batch * size, (batch + 1) * size)
            chosen = [self.records[self._order(place // total)[place % total]] for place in places]
            yield self.data.batch(chosen, batch, augment=True), self.world
            batch += workers * self.world

    def _order(self, run: int) -> list[int]:
        return [int(i) for i in np.random.default_rng([self.data.config.seed, run]).permutation(len(self.records))]

    def advance(self, mark: int) -> None:
        self.position += mark
