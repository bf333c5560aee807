"""A smaller copy of a store, and what it costs: cosine to the originals and neighbours that are lost.

Dims: Q queries, N rows searched, D width, k neighbours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mm.encoders.flame.store import FacetStore
from mm.encoders.flame.store_rows import Int8Rows, ProductRows, RowCodec
from mm.training.feature_job import FeatureJob

Kind = Literal["int8", "product"]
SHARD_CAPTIONS = 1024
LEARN_ROWS = 65_536
"""Most rows that codewords are learned from."""


def compress(
    source: FacetStore,
    folder: str | Path,
    kind: Kind,
    *,
    part: int = 8,
    seed: int = 0,
    shard_items: int = SHARD_CAPTIONS,
) -> FacetStore:
    """Write the rows of a store in fewer bytes; interrupted, the same call goes on.

    Args:
        source: A store of half floats.
        folder: Where the small one goes.
        kind: "int8" (half the size) or "product" (one byte for `part` channels).
        part: Channels per codeword.
        seed: Which rows the codewords are learned from.
        shard_items: Captions per shard.

    Raises:
        ValueError: the source is compressed already, or the folder holds another store.
    """
    if source.codec.kind != "half":
        raise ValueError(f"{source.folder}: its rows are {source.codec.kind} already; compress the original")
    captions = list(source)
    codec: RowCodec = Int8Rows() if kind == "int8" else _learned(source, captions, part, seed)
    identity = source.identity | codec.identity()
    about = source.cache.about | {"compressed_from": source.folder.name}
    job = FeatureJob(folder, captions, identity=identity, about=about, shard_items=shard_items)
    if isinstance(codec, ProductRows):
        codec.save(Path(folder))
    collector = job.collector()
    for keys in job.batches(shard_items):
        collector.add(keys, codec.encode(source.rows(keys)) | {"norms": source.norms(keys)})
    return FacetStore(folder)


def _learned(source: FacetStore, captions: list[str], part: int, seed: int) -> ProductRows:
    """Codewords from rows of captions that a seed picks."""
    count = max(1, LEARN_ROWS // source.facets)
    order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    rows = source.rows([captions[index] for index in order]).flatten(0, 1)
    return ProductRows.fit(rows.float(), part=part, seed=seed)


def compare(
    original: FacetStore, small: FacetStore, *, queries: int = 500, rows: int = 50_000, seed: int = 0
) -> dict[str, Any]:
    """What a compressed store loses.

    A query is an original row; it looks for its nearest rows among those of other captions, once among the originals
    and once among the compressed ones.

    Args:
        original: The store of half floats.
        small: Its compressed copy.
        queries: How many rows ask (Q).
        rows: Most rows that are searched (N); more captions than fit are left out at random.
        seed: Which.

    Returns:
        `bytes_ratio` on disk; `cosine` of rows and copies, mean and least; `recall_at_1` and `recall_at_10`: share of
        the true nearest rows that are found; `recall_loss_at_10` = 1 - that; and how many asked and were searched.

    Raises:
        ValueError: too few captions to look for ten neighbours.
    """
    captions = list(original)
    order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(seed))
    kept = [captions[index] for index in order[: max(1, rows // original.facets)].tolist()]
    if len(kept) < 12:
        raise ValueError(f"{original.folder}: {len(kept)} captions are too few to measure lost neighbours, need 12")
    exact = original.rows(kept).flatten(0, 1).float()  # (N, D)
    coarse = small.rows(kept).flatten(0, 1).float()
    cosine = torch.nn.functional.cosine_similarity(exact, coarse)
    owner = torch.arange(len(kept)).repeat_interleave(original.facets)
    asked = torch.randperm(len(exact), generator=torch.Generator().manual_seed(seed + 1))[:queries]
    true, found = (nearest(exact[asked], base, owner, owner[asked]) for base in (exact, coarse))
    at_1 = (true[:, :1] == found[:, :1]).float().mean().item()
    at_10 = (true[:, :, None] == found[:, None, :]).any(dim=2).float().mean().item()
    return {
        "rows": small.codec.kind,
        "bytes_ratio": size_of(small) / size_of(original),
        "cosine_mean": cosine.mean().item(),
        "cosine_least": cosine.min().item(),
        "recall_at_1": at_1,
        "recall_at_10": at_10,
        "recall_loss_at_10": 1.0 - at_10,
        "queries": len(asked),
        "searched": len(exact),
    }


def nearest(queries: Tensor, base: Tensor, owner: Tensor, asker: Tensor, k: int = 10) -> Tensor:
    """Numbers of the nearest rows of other captions, (Q, k); of equal ones the first."""
    scores = queries @ base.T
    scores[asker[:, None] == owner[None]] = -torch.inf
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :k]


def size_of(store: FacetStore) -> int:
    """Bytes of the files that a reader needs."""
    return sum(path.stat().st_size for path in store.folder.glob("*.safetensors"))
