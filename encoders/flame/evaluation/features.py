"""Features of all pictures of a source, with their classes and captions.

Dims: N pictures, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor

from mm.data import VisualSample
from mm.encoders.flame.evaluation.sources import captions_of
from mm.encoders.flame.model import FlameImageEncoder

Kind = Literal["embedding", "visual_only"]


@dataclass(frozen=True)
class ImageFeatures:
    """What an evaluation needs to know about pictures."""

    vectors: Tensor
    """(N, D) float32."""
    names: list[str]
    """File or key of each."""
    labels: list[str]
    """Class of each; "" where none is known."""
    captions: list[tuple[str, ...]]
    """What is said about each; may be empty."""

    def labelled(self) -> tuple[Tensor, list[str]]:
        """Numbers of the classes, (N,), and the classes in alphabetical order.

        Raises:
            ValueError: a picture has no class (named).
        """
        if "" in self.labels:
            raise ValueError(f"{self.names[self.labels.index('')]}: has no class; sub-folders or a column give it")
        classes = sorted(set(self.labels))
        return torch.tensor([classes.index(label) for label in self.labels]), classes

    def captioned(self) -> tuple[Tensor, list[str], Tensor, int]:
        """Pictures that have captions, all captions, the picture of each, and how many pictures have none.

        Raises:
            ValueError: no picture has one.
        """
        kept = [index for index, captions in enumerate(self.captions) if captions]
        if not kept:
            raise ValueError("no picture has a caption: text files beside the pictures or a column give them")
        texts = [caption for index in kept for caption in self.captions[index]]
        owner = [number for number, index in enumerate(kept) for _ in self.captions[index]]
        return self.vectors[kept], texts, torch.tensor(owner), len(self.captions) - len(kept)


@torch.no_grad()
def image_features(
    model: FlameImageEncoder,
    samples: Iterable[VisualSample],
    *,
    kind: Kind = "embedding",
    batch_size: int = 64,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> ImageFeatures:
    """Encode pictures.

    Args:
        model: The image encoder.
        samples: Any reader; every sample needs one picture.
        kind: "embedding" (unit vectors in the space of the text) or "visual_only" (features of the linear probe).
        batch_size: Pictures per pass.
        progress: Wraps the samples to show how far it is.

    Raises:
        ValueError: a sample without picture or with several (named), or no sample.
    """
    device = next(model.parameters()).device
    encode = model if kind == "embedding" else model.visual_only
    names: list[str] = []
    labels: list[str] = []
    captions: list[tuple[str, ...]] = []
    vectors = []
    for group in _groups(iter(progress(samples)), batch_size):
        for sample in group:
            names.append(_name(sample, len(names)))
            if len(sample.images) != 1:
                raise ValueError(f"{names[-1]}: an evaluation needs one picture per sample, got {len(sample.images)}")
            labels.append(sample.answer)
            captions.append(captions_of(sample))
        pixels = model.processor([sample.images[0] for sample in group])
        vectors.append(encode(pixels.to(device=device, dtype=next(model.parameters()).dtype)).float().cpu())
    if not vectors:
        raise ValueError("no picture to encode")
    return ImageFeatures(torch.cat(vectors), names, labels, captions)


def _groups(samples: Iterator[VisualSample], size: int) -> Iterator[list[VisualSample]]:
    while group := list(islice(samples, size)):
        yield group


def _name(sample: VisualSample, number: int) -> str:
    return str(sample.meta.get("id") or sample.meta.get("file") or f"picture {number}")
