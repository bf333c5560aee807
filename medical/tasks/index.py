"""An index over a folder of scans and reports: level vectors of both, small pictures, written shard by shard.

A killed run loses the scans of one shard and goes on with the others; what is there is never computed again. Scans are
known by hashes: no name of a file or a person is stored, unless asked for.
Dims: E shared width of a level, S regions, K sentences, W words, V visual tokens, D text width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mm.checkpoint import read_json, write_aside, write_json
from mm.medical.tasks.identity import fingerprint
from mm.medical.tasks.pictures import SMALL, small_view
from mm.medical.tasks.scan_input import cube_of
from mm.medical.velvet.config import LEVELS
from mm.medical.velvet.loss import LevelEmbeddings
from mm.medical.volumes.deidentify_text import scrub_report
from mm.medical.volumes.volume import Volume
from mm.training.feature_cache import FeatureCache
from mm.training.feature_job import FeatureJob

if TYPE_CHECKING:
    from mm.medical.velvet.model import VelvetModel

INDEX_FILE = "index.json"
FORMAT = 1
"""Layout of the features; part of the identity."""


@dataclass(frozen=True, kw_only=True)
class ScanItem:
    """One scan that goes into an index."""

    place: str
    """Where it lies, relative to the folder; hashed before it is stored."""
    read: Callable[[], Volume]
    """Loads the scan."""
    stamp: str = ""
    """Changes when the scan does (size and time of its files)."""
    report: str = ""
    """Its report, or nothing."""

    @property
    def key(self) -> str:
        """Hash of place, stamp and report."""
        text = json.dumps([self.place, self.stamp, self.report])
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What an index knows about a scan beside its vectors."""

    key: str
    report: str = ""
    """Scrubbed of headers that name a person; empty without report."""
    place: str = ""
    """Place of the file, only if the index was told to keep names."""
    error: str = ""
    """Why the scan could not be used; it is left out of every search."""
    facts: dict[str, Any] | None = None
    """Shape, spacing, notes of the scan."""


class IndexBuilder:
    """Computes what is missing of an index.

    Args:
        model: Gives the vectors.
        folder: The index; an older part of the same model is continued.
        items: All scans that the index is to hold.
        window: Intensity window, see `input_window`.
        keep_names: Store the places of files, so that hits can be found again; they may name patients.
        shard_items: Scans per file: what a killed run loses at most.

    Raises:
        ValueError: the folder holds an index of another model or other settings.
    """

    def __init__(
        self,
        model: VelvetModel,
        folder: str | Path,
        items: Iterable[ScanItem],
        *,
        window: str | None = None,
        keep_names: bool = False,
        shard_items: int = 16,
    ) -> None:
        self.model, self.folder, self.window, self.keep_names = model, Path(folder), window, keep_names
        self.items = {item.key: item for item in items}
        identity = {
            "format": FORMAT,
            "model": fingerprint(model),
            "window": window or "default",
            "names": keep_names,
        }
        self.job = FeatureJob(self.folder, list(self.items), identity=identity, shard_items=shard_items)

    def __len__(self) -> int:
        """Scans that are still to be computed."""
        return len(self.job)

    def run(self) -> Iterator[Entry]:
        """Compute what is missing, scan by scan, and yield what was found; the index is complete at the end.

        A scan that can't be used is kept as an entry with its reason, so that it is not tried again until its file
        changes.
        """
        collector = self.job.collector()
        for (key,) in self.job.batches(1):
            entry, features = self._computed(self.items.get(key), key)
            collector.add([key], {name: value[None] for name, value in features.items()})
            yield entry
        collector.close()
        with write_aside(self.folder / INDEX_FILE) as path:
            write_json(path, {"keys": list(self.items), "items": len(self.items)})

    def _computed(self, item: ScanItem | None, key: str) -> tuple[Entry, dict[str, Tensor]]:
        if item is None:  # a damaged shard of an older run holds a scan that is gone
            return self._failed(key, "", "the scan is not there any more")
        place = item.place if self.keep_names else ""
        try:
            volume = item.read()
            report = scrub_report(item.report)[0] if item.report.strip() else ""
            vectors = scan_vectors(self.model, volume, self.window) | text_vectors(self.model, report)
        except (ValueError, FileNotFoundError) as error:
            return self._failed(key, place, " ".join(str(error).split()))
        entry = Entry(key=key, report=report, place=place, facts=volume.summary())
        return entry, vectors | {"small": torch.from_numpy(small_view(volume, self.window)), "about": _packed(entry)}

    def _failed(self, key: str, place: str, why: str) -> tuple[Entry, dict[str, Tensor]]:
        entry = Entry(key=key, place=place, error=why)
        return entry, empty_vectors(self.model) | {
            "small": torch.zeros(SMALL, 3 * SMALL, dtype=torch.uint8),
            "about": _packed(entry),
        }


@torch.inference_mode()
def scan_vectors(model: VelvetModel, volume: Volume, window: str | None = None) -> dict[str, Tensor]:
    """Vectors of one scan in half precision: report (E), sentence and word (S, E), memory (V, D) for re-ranking."""
    cube = cube_of(volume, model.config.vision.volume_size, window).to(model.device)
    features = model.encode_volume(cube)
    found = model.volume_embeddings(features)
    vectors: dict[str, Tensor] = {level: getattr(found, level)[0] for level in model.config.levels}
    if model.adapter is not None:
        vectors["memory"] = model.visual_memory(features)[0]
    return {name: value.half().cpu() for name, value in vectors.items()}


@torch.inference_mode()
def text_vectors(model: VelvetModel, report: str) -> dict[str, Tensor]:
    """Vectors of one report in half precision: text_report (E), text_sentence (K, E), text_word (W, E).

    Without a report: no rows, and a report vector of zeros.

    Raises:
        ValueError: a text without any sentence.
    """
    if not report:
        return {name: value for name, value in empty_vectors(model).items() if name.startswith("text_")}
    found = model.encode_text(**model.tokenize([report])).embeddings
    vectors = {}
    for level in model.config.levels:
        value, keep = getattr(found, level)[0], getattr(found, f"{level}_keep", None)
        vectors[f"text_{level}"] = (value if keep is None else value[keep[0]]).half().cpu()
    return vectors


def empty_vectors(model: VelvetModel) -> dict[str, Tensor]:
    """What stands for a scan that can't be used."""
    width = model.config.contrastive_width
    vectors: dict[str, Tensor] = {}
    for level in model.config.levels:
        shape = (width,) if level == "report" else (0, width)
        vectors |= {level: torch.zeros(shape, dtype=torch.half), f"text_{level}": torch.zeros(shape, dtype=torch.half)}
    if model.adapter is not None:
        vectors["memory"] = torch.zeros(0, model.config.text.width, dtype=torch.half)
    return vectors


def _packed(entry: Entry) -> Tensor:
    """An entry as bytes, so that it lies in the shard with its vectors."""
    return torch.from_numpy(np.frombuffer(json.dumps(asdict(entry)).encode(), dtype=np.uint8).copy())


class ScanIndex:
    """A finished index, read from memory-mapped files.

    Args:
        folder: What `IndexBuilder` wrote.

    Attributes:
        entries: Usable scans in the order of the index.
        failed: Scans that could not be used, with their reasons.

    Raises:
        FileNotFoundError: no index, or one that was not finished.
        ValueError: a damaged shard.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / INDEX_FILE).is_file():
            raise FileNotFoundError(
                "there is no finished index in that folder: run `mm medical index SCANS --out FOLDER` (again)"
            )
        self.cache = FeatureCache(self.folder)
        listed = read_json(self.folder / INDEX_FILE)["keys"]
        every = [replace(_entry(self.cache[key]["about"]), key=key) for key in listed]
        self.entries = [entry for entry in every if not entry.error]
        self.failed = [entry for entry in every if entry.error]

    @property
    def window(self) -> str | None:
        """Intensity window of the scans, None for the default."""
        stated = str((self.cache.identity or {}).get("window", "default"))
        return None if stated == "default" else stated

    def __len__(self) -> int:
        """Usable scans."""
        return len(self.entries)

    def check_model(self, model: VelvetModel) -> None:
        """Refuse vectors of another model.

        Raises:
            ValueError: the index was made by other weights.
        """
        stated = (self.cache.identity or {}).get("model")
        if stated != (own := fingerprint(model)):
            raise ValueError(
                f"the index was made by other weights ({stated}) than this model's ({own}): build it again"
            )

    def vectors(self, rows: Sequence[int], name: str) -> Tensor:
        """One feature of several scans, stacked, as float32.

        Args:
            rows: Numbers of `entries`.
            name: report, sentence, word, memory, text_report; all scans have one shape there.
        """
        return torch.stack([self.feature(row, name) for row in rows])

    def feature(self, row: int, name: str) -> Tensor:
        """One feature of one scan, float32.

        Raises:
            ValueError: the index has no such feature.
        """
        found = self.cache[self.entries[row].key]
        if name not in found:
            raise ValueError(f"the index holds no {name!r}; it holds {', '.join(found)}")
        return found[name].float()

    def scans(self, rows: Sequence[int], grids: dict[str, tuple[int, int, int]] | None = None) -> LevelEmbeddings:
        """Level vectors of some scans."""
        levels = [level for level in LEVELS if level in self.cache[self.entries[0].key]]
        return LevelEmbeddings(**{level: self.vectors(rows, level) for level in levels}, grids=grids or {})

    def texts(self, rows: Sequence[int]) -> LevelEmbeddings:
        """Level vectors of some reports, padded to the longest."""
        found: dict[str, Any] = {}
        for level in (level for level in LEVELS if level in self.cache[self.entries[0].key]):
            values = [self.feature(row, f"text_{level}") for row in rows]
            if level == "report":
                found[level] = torch.stack(values)
                continue
            padded = torch.nn.utils.rnn.pad_sequence(values, batch_first=True)
            lengths = torch.tensor([len(value) for value in values])
            found[level] = padded
            found[f"{level}_keep"] = torch.arange(padded.shape[1]) < lengths[:, None]
        return LevelEmbeddings(**found)

    def picture(self, row: int) -> np.ndarray:
        """Small view of a scan, uint8."""
        return self.cache[self.entries[row].key]["small"].numpy()  # type: ignore[no-any-return]


def _entry(packed: Tensor) -> Entry:
    return Entry(**json.loads(packed.numpy().tobytes().decode()))
