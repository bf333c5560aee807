"""Which clips fit a text: every pair through fusion, or only the pairs that the contrastive vectors think likely.

    score = matching logit (+ cosine of the contrastive vectors, where the model has these heads)

Features are computed once per clip and once per text; a pair costs a pass of the fusion layers alone.
Source: ALPRO (arXiv:2112.09583) for re-ranking; VIOLETv2 (arXiv:2209.01540) scores every pair.
Deviation: pairs that are not scored get -inf where ALPRO writes -100, which a logit could pass.
Dims: N clips, M texts, E contrastive channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mm.encoders.evilm.model import EViLM, TextFeatures, VideoFeatures

RERANK_K = 128
"""Clips per text that are scored by fusion when the model can choose them by cosine."""
CHUNK_SIZE = 64
"""Pairs that go through fusion at a time."""


@torch.no_grad()
def exhaustive_scores(
    model: EViLM, video: VideoFeatures, text: TextFeatures, *, chunk_size: int = CHUNK_SIZE
) -> Tensor:
    """Scores of all clips with all texts, (N, M) float32."""
    every = torch.cartesian_prod(torch.arange(len(video.tokens)), torch.arange(len(text.tokens))).view(-1, 2)
    return _scores(model, video, text, every, chunk_size).view(len(video.tokens), len(text.tokens))


@torch.no_grad()
def reranked_scores(
    model: EViLM, video: VideoFeatures, text: TextFeatures, k: int = RERANK_K, *, chunk_size: int = CHUNK_SIZE
) -> Tensor:
    """Scores of the `k` clips that are nearest to each text by cosine, (N, M) float32; -inf elsewhere.

    Raises:
        ValueError: the model has no contrastive heads, or `k` is below 1.
    """
    near = nearest_clips(cosines(video, text), k)  # (k, M)
    texts = torch.arange(near.shape[1], device=near.device).expand_as(near)
    pairs = torch.stack([near, texts], dim=-1).view(-1, 2)
    found = _scores(model, video, text, pairs, chunk_size)
    empty = found.new_full((len(video.tokens), len(text.tokens)), -torch.inf)
    return empty.index_put((pairs[:, 0].to(empty.device), pairs[:, 1].to(empty.device)), found)


def cosines(video: VideoFeatures, text: TextFeatures) -> Tensor:
    """Cosines of the contrastive vectors, (N, M).

    Raises:
        ValueError: the model has no contrastive heads.
    """
    if video.embedding is None or text.embedding is None:
        raise ValueError("this model has no contrastive heads (contrastive_width=0): every pair must go through fusion")
    return video.embedding @ text.embedding.mT


def nearest_clips(similarity: Tensor, k: int) -> Tensor:
    """Rows of the k largest entries of every column, (k, M); all rows when there are fewer."""
    if k < 1:
        raise ValueError(f"re-ranking needs at least one clip per text, got k={k}")
    return similarity.topk(min(k, len(similarity)), dim=0).indices


def _scores(model: EViLM, video: VideoFeatures, text: TextFeatures, pairs: Tensor, chunk_size: int) -> Tensor:
    found = model.score_pairs(video, text, pairs, chunk_size=chunk_size).float()
    if video.embedding is None or text.embedding is None:
        return found
    pairs = pairs.to(found.device)
    return found + (video.embedding[pairs[:, 0]] * text.embedding[pairs[:, 1]]).sum(-1).float()
