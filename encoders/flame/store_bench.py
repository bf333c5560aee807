"""How fast training reads embeddings: this store against one tensor file per sample, the authors' layout.

Both hold the same rows of random numbers and give the same batch, checked before the clock starts: 6 of 11 rows of
random samples. Files are in the page cache for both; what is measured is opening, parsing, copying.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mm.encoders.flame.positives import draw_positives
from mm.encoders.flame.store import FacetStore
from mm.encoders.flame.store_official import LABELS, read_sample
from mm.encoders.flame.store_rows import HalfRows
from mm.metrics.latency import measure
from mm.training.feature_job import FeatureJob

FACETS = len(LABELS)
PICKED = 6
"""Rows that training draws of each sample (paper section on training; published command)."""


def rows(*, device: str = "cpu", repeats: int = 30) -> list[dict[str, Any]]:
    """Time one batch at the published width and at a small one.

    Args:
        device: Must be "cpu": reading does not use another.
        repeats: Batches per candidate.

    Raises:
        ValueError: another device.
    """
    if device != "cpu":
        raise ValueError(f"reading a store happens on the CPU, got --device {device}")
    return [row for width in (5120, 128) for row in compare(width=width, repeats=repeats)]


def compare(
    *, width: int, samples: int = 768, batch: int = 256, repeats: int = 30, seed: int = 0
) -> list[dict[str, Any]]:
    """Time reading a batch of random samples from both layouts.

    Args:
        width: Channels per row.
        samples: Samples in the store.
        batch: Samples per batch.
        repeats: Batches per candidate.
        seed: Of the numbers and of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        keys = [f"{number:09d}" for number in range(samples)]
        files, store = _write(Path(folder), keys, width, generator)
        order = torch.randperm(samples, generator=generator)[:batch].tolist()
        buffer = torch.empty(
            batch, PICKED, width, dtype=torch.float16
        )  # both write to the same memory, again and again
        asked, picked = [keys[index] for index in order], draw_positives(batch, FACETS, PICKED, generator)

        def from_files() -> Tensor:
            found = [read_sample(files[key])[pick] for key, pick in zip(asked, picked, strict=True)]
            return torch.stack(found, out=buffer)

        def from_store() -> Tensor:
            return store.rows(asked, picked, out=buffer)

        assert torch.equal(from_files().clone(), from_store()), "the two layouts must give the same batch"
        timed = measure({"one file per sample": from_files, "store": from_store}, repeats=repeats, warmup=3)
    return [
        {
            "setting": f"{batch} samples, 6 of 11 rows, width {width}",
            "candidate": row.candidate,
            "median_ms": row.median_ms,
            "p20_ms": row.p20_ms,
            "p80_ms": row.p80_ms,
            "speedup": 1 / row.ratio,
            "repeats": row.repeats,
        }
        for row in timed
    ]


def _write(folder: Path, keys: list[str], width: int, generator: torch.Generator) -> tuple[dict[str, Path], FacetStore]:
    """The same samples in both layouts."""
    files = {key: folder / "files" / key[:5] / f"{key}.pth" for key in keys}
    identity = {"text_tower": "random", "template": "benchmark", "facets": FACETS, "width": width}
    job = FeatureJob(folder / "store", keys, identity=identity | HalfRows().identity(), shard_items=256)
    collector = job.collector()
    for part in job.batches(256):
        values = F.normalize(torch.randn(len(part), FACETS, width, generator=generator), dim=-1)
        collector.add(part, HalfRows().encode(values) | {"norms": torch.ones(len(part), FACETS)})
        for key, value in zip(part, values.half(), strict=True):
            files[key].parent.mkdir(parents=True, exist_ok=True)
            torch.save(value.clone(), files[key])
    return files, FacetStore(folder / "store")
