"""Zero-shot classification: a class is the mean of its sentences' embeddings, a picture belongs to the nearest.

Dims: B pictures, C classes, T sentences per class, D width.
Source: FLAME (Cao et al. 2024, arXiv:2411.11927), evaluation with the single-facet template; the averaging is CLIP's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mm.encoders.flame.evaluation.phrases import PHRASES, checked_phrases
from mm.encoders.flame.text import TextTower
from mm.metrics.scores import accuracy, recall_at_k


def class_vectors(
    tower: TextTower,
    names: Sequence[str],
    phrases: Sequence[str] = PHRASES["en"],
    *,
    template: str = "single",
    batch_size: int = 32,
) -> Tensor:
    """One unit vector per class.

    Args:
        tower: The frozen text tower.
        names: What the classes are called, in any language.
        phrases: Sentences with `{}` for the name.
        template: Template of the text tower.
        batch_size: Sentences per pass.

    Returns:
        (C, D) float32: every sentence embedded and normalised, their mean normalised again.

    Raises:
        ValueError: no class, an empty or repeated name, or a sentence without `{}`.
    """
    stripped = [name.strip() for name in names]
    repeated = {name for name in stripped if stripped.count(name) > 1}
    if not stripped or "" in stripped or repeated:
        problem = f"twice: {', '.join(sorted(repeated))}" if repeated else "an empty name" if stripped else "no class"
        raise ValueError(f"classes need different names that are not empty; got {problem}")
    phrases = checked_phrases(phrases)
    texts = [phrase.replace("{}", name) for name in stripped for phrase in phrases]
    vectors = tower.encode(texts, template=template, reduce="mean", batch_size=batch_size).float()
    by_class = rearrange(F.normalize(vectors, dim=-1), "(c t) d -> c t d", t=len(phrases))
    return F.normalize(by_class.mean(dim=1), dim=-1)


def zero_shot(images: Tensor, labels: Tensor, classes: Tensor) -> dict[str, Any]:
    """How often the right class is the nearest, or among the nearest five.

    Args:
        images: Unit vectors of the pictures, (B, D).
        labels: Number of the right class, (B,) int.
        classes: From `class_vectors`, (C, D).

    Returns:
        `top1`, `top5` (with more than five classes), `mean_per_class`, `chance`, and how many pictures and classes.

    Raises:
        ValueError: no picture, or a label that is no class.
    """
    if not len(images) or int(labels.min()) < 0 or int(labels.max()) >= len(classes):
        raise ValueError(f"need pictures with labels in 0..{len(classes) - 1}, got {len(images)} pictures")
    scores = images.float() @ classes.float().T  # (B, C)
    own = [accuracy(scores[labels == label], labels[labels == label]) for label in labels.unique()]
    found = {
        "images": len(images),
        "classes": len(classes),
        "top1": accuracy(scores, labels),
        "mean_per_class": sum(own) / len(own),
        "chance": 1 / len(classes),
    }
    if len(classes) > 5:
        found["top5"] = recall_at_k(scores, F.one_hot(labels, len(classes)).to(torch.bool), 5)
    return found
