"""Words for what the image encoder says: the language model's own head, applied to image vectors.

Text targets lie in the residual stream of the language model, so its head can read the image side as well.
Dims: B pictures, N patches, D width, V vocabulary.
Source: FLAME (Cao et al. 2024, arXiv:2411.11927), semantic read-out of patches.
Deviation: the published script skips the final norm and takes the token of rank 50; here the norm is applied, because
image vectors have another length than the residual stream, and the best token is taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mm.backbone import LanguageBackbone


@torch.no_grad()
def word_scores(backbone: LanguageBackbone, vectors: Tensor, tokens: Sequence[int] | None = None) -> Tensor:
    """Scores of tokens for image vectors.

    Args:
        backbone: The language model of the text tower, with its head.
        vectors: Pooled (B, D) or per patch (B, N, D).
        tokens: Only these token ids; None takes the whole vocabulary.

    Returns:
        (B, ..., V) float32.

    Raises:
        ValueError: the language model has no head (it was loaded truncated), or another width.
    """
    if backbone.head is None:
        raise ValueError("a read-out needs the language model's head; load it without layers=...")
    if vectors.shape[-1] != backbone.width:
        raise ValueError(f"vectors have {vectors.shape[-1]} channels, the language model {backbone.width}")
    weight: Tensor = backbone.head.weight  # type: ignore[assignment]
    logits = backbone.head(backbone.final_norm(vectors.to(weight))).float()
    return logits if tokens is None else logits[..., list(tokens)]
