"""Image-text retrieval both ways, with short or long captions and several captions per picture.

Dims: N pictures, T texts, K facets, D width.
Source: FLAME (Cao et al. 2024, arXiv:2411.11927), retrieval with seven facets and their mean; R@k as CLIP benchmarks
count it: a picture is served if any of its captions is among the first k.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mm.metrics.scores import hit_at_k

Facets = Literal["mean", "each", "max"] | Sequence[int]
TEXTS_AT_ONCE = 4096


def text_scores(images: Tensor, texts: Tensor, facets: Facets = "mean") -> Tensor:
    """Similarity of every picture and every text.

    Args:
        images: Unit vectors, (N, D).
        texts: Un-normalised facet embeddings, (T, K, D), or one vector per text, (T, D).
        facets: "mean": cosine with the mean of the un-normalised facets, as published; "each": mean of the cosines with
            every facet; "max": the best of them; or numbers of facets (from 0) to take the mean of.

    Returns:
        (N, T) float32.

    Raises:
        ValueError: an unknown way, or a facet that does not exist.
    """
    texts = texts[:, None] if texts.ndim == 2 else texts
    if not isinstance(facets, str):
        if not facets or not all(0 <= facet < texts.shape[1] for facet in facets):
            raise ValueError(f"facets must be numbers in 0..{texts.shape[1] - 1}, got {list(facets)}")
        texts, facets = texts[:, list(facets)], "mean"
    if facets not in ("mean", "each", "max"):
        raise ValueError(f"facets must be 'mean', 'each', 'max' or a list of numbers, got {facets!r}")
    if facets == "mean":
        return images.float() @ F.normalize(texts.float().mean(dim=1), dim=-1).T
    columns = []
    for part in texts.split(TEXTS_AT_ONCE):
        cosines = torch.einsum("nd,tkd->ntk", images.float(), F.normalize(part.float(), dim=-1))
        columns.append(cosines.mean(dim=2) if facets == "each" else cosines.amax(dim=2))
    return torch.cat(columns, dim=1)


def retrieval(scores: Tensor, owner: Tensor, ks: Sequence[int] = (1, 5, 10)) -> dict[str, Any]:
    """R@k from pictures to texts and from texts to pictures.

    Args:
        scores: Similarity, (N, T).
        owner: Number of the picture that each text is of, (T,) int.
        ks: Lengths of the list; those longer than what is searched are left out.

    Returns:
        `image_to_text_r1`, ..., `text_to_image_r1`, ..., and how many pictures and texts.

    Raises:
        ValueError: shapes that do not fit, or a picture without text.
    """
    if scores.ndim != 2 or owner.shape != scores.shape[1:]:
        raise ValueError(f"need scores (N, T) and owner (T,), got {tuple(scores.shape)} and {tuple(owner.shape)}")
    relevant = owner[None] == torch.arange(len(scores))[:, None]  # (N, T)
    found: dict[str, Any] = {"images": len(scores), "texts": scores.shape[1]}
    for name, asked, right in (("image_to_text", scores, relevant), ("text_to_image", scores.T, relevant.T)):
        found |= {f"{name}_r{k}": hit_at_k(asked, right, k) for k in ks if k <= asked.shape[1]}
    return found
