"""k-means for the semantic codebooks: chunk after chunk, warm-started, one codebook part per sound domain.

Lloyd's algorithm on one chunk of shuffled features until the centres rest, then on the next chunk from where the last
one ended. The nearest centre is searched by `nearest_code`, so the matrix of all distances is never made.
Dims: N vectors of a chunk, K centres, D width.
Source: paper section III-A; chunking, start and stopping rule follow the author's published k-means code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from mm.codecs.semanticodec.config import QuantizerConfig
from mm.kernels import nearest_code

BLOCK = 25_600
"""Vectors assigned at once."""
Start = Literal["random", "plusplus"]


@dataclass
class Clustering:
    """Centres and how they were found."""

    centres: Tensor
    """(K, D) float32."""
    inertia: list[float] = field(default_factory=list)
    """Mean squared distance to the nearest centre in front of every step."""
    chunks: int = 0
    """Chunks used."""


def kmeans(
    chunks: Iterable[Tensor],
    size: int,
    *,
    generator: torch.Generator,
    start: Start = "random",
    tolerance: float = 1e-4,
    max_steps: int = 20_000,
) -> Clustering:
    """Cluster vectors that come in chunks.

    A chunk that is shorter than the first one is left out: few vectors would pull all centres towards themselves.

    Args:
        chunks: Shuffled vectors, each (N, D); the first needs at least `size` of them.
        size: Centres (K).
        generator: Draws the start.
        start: random rows of the first chunk (published), or k-means++.
        tolerance: A chunk is done when the squared sum of all centre shifts falls below.
        max_steps: Steps over all chunks together.

    Raises:
        ValueError: fewer vectors than centres, no chunk, or an unknown start.
    """
    found: Clustering | None = None
    first = 0
    for chunk in chunks:
        if found is None:
            found, first = Clustering(_start(chunk, size, generator, start)), len(chunk)
        if len(chunk) < first:
            continue
        found.chunks += 1
        while len(found.inertia) < max_steps:
            moved, inertia = lloyd_step(chunk, found.centres)
            shift = (moved - found.centres).norm(dim=1).sum().square()
            found.centres = moved
            found.inertia.append(inertia)
            if shift < tolerance:
                break
    if found is None:
        raise ValueError("there is nothing to cluster: no chunk of features")
    return found


def lloyd_step(x: Tensor, centres: Tensor) -> tuple[Tensor, float]:
    """Means of the vectors (N, D) nearest to each centre (K, D), and the mean squared distance before the step.

    A centre without vectors stays where it is.
    """
    sums, counts = torch.zeros_like(centres), centres.new_zeros(len(centres))
    inertia = 0.0
    for block in x.float().split(BLOCK):
        codes, distances = nearest_code(block, centres)
        sums.index_add_(0, codes, block)
        counts += torch.bincount(codes, minlength=len(centres))
        inertia += float(distances.sum())
    means = sums / counts.clamp(min=1)[:, None]
    return torch.where(counts[:, None] > 0, means, centres), inertia / len(x)


def _start(x: Tensor, size: int, generator: torch.Generator, start: Start) -> Tensor:
    if len(x) < size:
        raise ValueError(f"{size} centres need at least as many vectors in the first chunk, got {len(x)}")
    if start == "random":
        rows = torch.randperm(len(x), generator=generator)[:size]
        return x[rows.to(x.device)].float().clone()
    if start != "plusplus":
        raise ValueError(f"start must be 'random' or 'plusplus', got {start!r}")
    return _plusplus(x.float(), size, generator)


def _plusplus(x: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Each further centre is a vector drawn in proportion to its squared distance from those there are."""
    pick = int(torch.randint(len(x), (1,), generator=generator))
    centres = [x[pick]]
    distance = (x - x[pick]).square().sum(1)
    for _ in range(size - 1):
        weight = distance.double().cumsum(0)
        aim = torch.rand((), generator=generator, dtype=torch.float64).to(x.device) * weight[-1]
        pick = min(int(torch.searchsorted(weight, aim)), len(x) - 1)
        centres.append(x[pick])
        distance = torch.minimum(distance, (x - x[pick]).square().sum(1))
    return torch.stack(centres)


def train_codebooks(
    features: Mapping[str, Callable[[], Iterable[Tensor]]],
    config: QuantizerConfig,
    *,
    seed: int = 0,
    start: Start = "random",
    max_steps: int = 20_000,
) -> dict[int, Tensor]:
    """Semantic codebooks of all vocabularies: every domain is clustered by itself, the parts are stacked in order.

    Args:
        features: Domain -> function that gives its chunks (N, D) afresh; it is called once per vocabulary.
        config: Vocabularies, domains and their shares.
        seed: Of the starts.
        start: See `kmeans`.
        max_steps: See `kmeans`.

    Returns:
        Vocabulary -> centres (V, D).

    Raises:
        ValueError: a domain of the config has no features.
    """
    missing = [name for name in config.domains if name not in features]
    if missing:
        raise ValueError(f"no features for the domains {', '.join(missing)}; there are {', '.join(features)}")
    generator = torch.Generator().manual_seed(seed)
    codebooks = {}
    for vocab in config.semantic_vocabs:
        parts = []
        for name, (first, end) in config.domain_ranges(vocab).items():
            found = kmeans(features[name](), end - first, generator=generator, start=start, max_steps=max_steps)
            parts.append(found.centres)
        codebooks[vocab] = torch.cat(parts)
    return codebooks
