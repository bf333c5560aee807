"""Filling a store of text embeddings: in one process, in several, under `Trainer.predict`, or by a pool of actors.

All ways share one unit of work, the shard, and one function, `embed_rows`; so they write the same bytes. The processes
need no connection: each takes the shards whose number is its own modulo the number of processes.

    ShardEmbedder(folder, config, template="long")      # a callable for Ray Data's actor pools, made once per actor
    ray.data.from_items(shard_items(job)).map(ShardEmbedder, fn_constructor_kwargs={...}, concurrency=8, num_gpus=1)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm.encoders.flame.store import identity_of
from mm.encoders.flame.store_rows import HalfRows
from mm.encoders.flame.text import TextTower
from mm.encoders.flame.tower import TextTowerConfig, load_text_tower
from mm.training.feature_job import FeatureJob, ShardCollector, ShardTask

SHARD_CAPTIONS = 1024
"""Captions per shard: 73 MB with seven rows of 5120 channels, and the most work that a kill can lose."""


def embed_rows(tower: TextTower, captions: Sequence[str], template: str, *, batch_size: int = 32) -> dict[str, Tensor]:
    """What the store keeps of some captions.

    Args:
        tower: The frozen text tower.
        captions: Any strings.
        template: Name of the template.
        batch_size: Captions per pass.

    Returns:
        `rows` (B, K, D) float16 unit rows, normalised in float32, and `norms` (B, K) float32, their lengths before.

    Raises:
        ValueError: an embedding is not finite (half precision overflowed) or zero; the caption is named.
    """
    raw = tower.encode(captions, template=template, batch_size=batch_size).float().cpu()  # (B, K, D)
    norms = raw.norm(dim=-1)
    bad = ~(norms.isfinite() & (norms > 0)).all(dim=1)
    if bad.any():
        caption = captions[int(bad.nonzero()[0, 0])]
        raise ValueError(
            f"the embedding of {caption[:80]!r} is not finite or zero; run the language model in bfloat16 or float32"
        )
    return HalfRows().encode(raw / norms[..., None]) | {"norms": norms}


def store_job(
    folder: str | Path,
    captions: Iterable[str],
    tower: TextTower,
    template: str,
    *,
    about: Mapping[str, Any] | None = None,
    shard_items: int = SHARD_CAPTIONS,
    rank: int = 0,
    world: int = 1,
) -> FeatureJob:
    """What one process has to embed; equal captions are embedded once.

    Raises:
        ValueError: the folder holds embeddings of another language model, layer or template.
    """
    identity = identity_of(tower, template) | HalfRows().identity()
    return FeatureJob(folder, captions, identity=identity, about=about, shard_items=shard_items, rank=rank, world=world)


def fill(
    job: FeatureJob,
    tower: TextTower,
    *,
    batch_size: int = 32,
    progress: Callable[[Iterable[ShardTask]], Iterable[ShardTask]] = iter,
) -> int:
    """Embed everything a job asks for.

    Args:
        job: From `store_job`.
        tower: The same that the job was made with.
        batch_size: Captions per pass.
        progress: Wraps the shards to show how far it is.

    Returns:
        Captions that were embedded.
    """
    collector = job.collector()
    for task in progress(job.tasks):
        collector.add(task.keys, embed_rows(tower, task.keys, job.identity["template"], batch_size=batch_size))
    return collector.written


def shard_items(job: FeatureJob) -> list[dict[str, Any]]:
    """The shards of a job as plain rows, for a distributed data set; each is one call of `ShardEmbedder`."""
    job.collector()  # the folder and its identity exist before the first actor looks
    return [{"number": task.number, "captions": list(task.keys)} for task in job.tasks]


class ShardEmbedder:
    """A callable that embeds whole shards; the language model is read once, when the callable is made.

    Args:
        folder: The store.
        config: The text tower, as `TextTowerConfig` or its fields as a plain dict.
        template: Name of the template.
        device: Where the language model runs.
        dtype: Name of its dtype, for instance "bfloat16"; None keeps that of its weights.
        batch_size: Captions per pass.

    Raises:
        ValueError: the store was begun with another language model, layer or template.
    """

    def __init__(
        self,
        folder: str,
        config: TextTowerConfig | Mapping[str, Any],
        *,
        template: str = "long",
        device: str = "cpu",
        dtype: str | None = None,
        batch_size: int = 32,
    ) -> None:
        config = config if isinstance(config, TextTowerConfig) else TextTowerConfig(**config)
        self.folder = Path(folder)
        self.tower = ready_tower(config, device=device, dtype=dtype)
        self.template, self.batch_size = template, batch_size
        store_job(self.folder, [], self.tower, template, about=asdict(config))

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Embed and write one shard.

        Args:
            item: One of `shard_items`: `number` and `captions`.

        Returns:
            `number` and `written`, the captions in it.
        """
        captions = [str(caption) for caption in item["captions"]]
        task = ShardTask(int(item["number"]), tuple(captions))
        collector = ShardCollector(self.folder, [task])
        collector.add(task.keys, embed_rows(self.tower, captions, self.template, batch_size=self.batch_size))
        return {"number": task.number, "written": collector.written}


def ready_tower(config: TextTowerConfig, *, device: str = "cpu", dtype: str | None = None) -> Any:
    """A text tower on its device.

    Raises:
        ValueError: unknown dtype.
    """
    from mm.checkpoint import cast_state

    tower = load_text_tower(config)
    if dtype is not None:
        wanted = getattr(torch, dtype, None)
        if wanted not in (torch.float16, torch.bfloat16, torch.float32):
            raise ValueError(f"dtype must be float16, bfloat16 or float32, got {dtype!r}")
        cast_state(tower, wanted)
    return tower.to(device)
