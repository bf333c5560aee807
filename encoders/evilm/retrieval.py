"""Retrieval on annotated videos, after the protocol of each data set: R@1, 5, 10 and median rank, both ways.

Every clip and every text is encoded once; pairs go through fusion in chunks.
Source: protocols of VIOLETv2 (arXiv:2209.01540): one caption per video for MSRVTT, the paragraph of all sentences in
order for DiDeMo; all captions for MSVD.
Dims: N clips, M texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mm.data.video_files import VideoFiles
from mm.encoders.evilm.annotations import VideoRow, by_video
from mm.encoders.evilm.model import EViLM, TextFeatures, VideoFeatures
from mm.encoders.evilm.search import CHUNK_SIZE, cosines, exhaustive_scores, reranked_scores
from mm.metrics.scores import hit_at_k
from mm.training.video_features import frames_uint8
from mm.vision import read_video

Captions = Literal["first", "all", "paragraph"]
PROTOCOLS: dict[str, Captions] = {"msrvtt": "first", "didemo": "paragraph"}
"""Layout -> which captions are queries; all of them elsewhere."""


@dataclass(frozen=True, kw_only=True)
class EncodedClips:
    """Clips of an evaluation."""

    rows: list[VideoRow]
    """Those that could be read, one per clip."""
    video: VideoFeatures
    """Features of all of them."""
    problems: list[str]
    """What is wrong with files; an unreadable one is among these and not in `rows`."""


def queries(row: VideoRow, captions: Captions) -> tuple[str, ...]:
    """The texts that are to find a video.

    Raises:
        ValueError: an unknown way, or a row without captions.
    """
    if captions not in get_args(Captions):
        raise ValueError(f"captions must be one of {', '.join(get_args(Captions))}, got {captions!r}")
    if not row.captions:
        raise ValueError(f"{row.place}: no caption to search with")
    if captions == "paragraph":
        return (" ".join(row.captions),)
    return row.captions[:1] if captions == "first" else row.captions


@torch.no_grad()
def retrieval(
    model: EViLM,
    clips: EncodedClips,
    captions: Captions = "all",
    *,
    rerank_k: int | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> dict[str, Any]:
    """R@k and median rank.

    Args:
        model: With tokenizer.
        clips: From `encode_rows`.
        captions: Which texts are queries: the first of each video, all, or all joined.
        rerank_k: Score only so many clips per text, the nearest by cosine; None scores every pair.
        chunk_size: Pairs in fusion at a time.

    Returns:
        `text_to_video_r1` ..., `video_to_text_r1` ... (only when every pair is scored), `..._median_rank`, how many
        clips and texts, and how many texts were cut at the model's limit.
    """
    asked = [queries(row, captions) for row in clips.rows]
    owner = torch.tensor([number for number, texts in enumerate(asked) for _ in texts])
    text, cut = encode_texts(model, [words for texts in asked for words in texts])
    if rerank_k is None:
        scores = exhaustive_scores(model, clips.video, text, chunk_size=chunk_size).cpu()
    else:
        scores = reranked_scores(model, clips.video, text, rerank_k, chunk_size=chunk_size).cpu()
    found: dict[str, Any] = {"clips": len(asked), "texts": len(owner), "texts_cut": cut}
    right = owner[:, None] == torch.arange(len(asked))  # (M, N)
    found |= ranks("text_to_video", scores.mT, right)
    if rerank_k is None:
        found |= ranks("video_to_text", scores, right.mT)
    if text.embedding is not None:
        found |= ranks("cosine_text_to_video", cosines(clips.video, text).float().cpu().mT, right)
    return found


def ranks(name: str, scores: Tensor, right: Tensor, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """R@k and median rank of the best right entry; equal scores count against us.

    Args:
        name: Begins the names of the results.
        scores: Queries by entries, larger is better.
        right: True where an entry belongs to the query, same shape; every query needs one.
        ks: Lengths of the list; those longer than what is searched are left out.
    """
    found = {f"{name}_r{k}": hit_at_k(scores, right, k) for k in ks if k <= scores.shape[1]}
    best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    ahead = ((scores >= best) & ~right).sum(1)
    return found | {f"{name}_median_rank": float(ahead.float().quantile(0.5, interpolation="higher")) + 1}


def encode_rows(
    model: EViLM,
    rows: Iterable[VideoRow],
    files: VideoFiles,
    *,
    num_frames: int = 5,
    batch_size: int = 8,
    skip_unreadable: bool = False,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda items, total: items,
) -> EncodedClips:
    """Read and encode the videos of annotation rows, each once.

    Args:
        model: On the device it is to run on.
        rows: Rows of one video are joined.
        files: Where the videos are.
        num_frames: Evenly spaced frames per clip.
        batch_size: Clips per pass.
        skip_unreadable: Leave out what cannot be read and say so; else stop there.
        progress: Wraps (rows, how many); for a bar.

    Raises:
        ValueError: a row whose video is missing or cannot be read, or nothing that can.
    """
    problems: list[str] = []
    kept: list[VideoRow] = []
    parts: list[VideoFeatures] = []
    pending: list[Tensor] = []
    device = next(model.parameters()).device

    def encode() -> None:
        if pending:
            with torch.no_grad():
                parts.append(model.encode_video(torch.stack(pending).to(device)))
            pending.clear()

    joined = by_video(rows)
    for row in progress(joined, len(joined)):
        try:
            clip = read_video(files.find(row.video), num_frames)
        except (ValueError, OSError) as error:
            if not skip_unreadable:
                raise ValueError(f"{row.place}: {error}") from error
            problems.append(f"{row.place}: {error}")
            continue
        problems += [f"{row.video}: {problem}" for problem in clip.problems]
        kept.append(row)
        pending.append(frames_uint8(clip.frames, model.image_preprocessing))
        if len(pending) == batch_size:
            encode()
    encode()
    if not parts:
        raise ValueError(f"none of {len(joined)} videos could be read" + (f": {problems[0]}" if problems else ""))
    return EncodedClips(rows=kept, video=_joined(parts), problems=problems)


def encode_texts(model: EViLM, texts: list[str], *, batch_size: int = 256) -> tuple[TextFeatures, int]:
    """Features of texts, and how many were longer than the model reads and were cut."""
    cut = sum(len(model.tokenizer(text).input_ids) > model.config.max_text_len for text in texts)
    whole = model.tokenize(texts, truncate=True)
    with torch.no_grad():
        parts = [
            model.encode_text(*part) for part in _batches(whole["input_ids"], whole["attention_mask"], size=batch_size)
        ]
    vectors = [part.embedding for part in parts if part.embedding is not None]
    joined = TextFeatures(
        torch.cat([part.tokens for part in parts]),
        torch.cat([part.mask for part in parts]),
        torch.cat(vectors) if vectors else None,
    )
    return joined, cut


def _batches(ids: Tensor, mask: Tensor, *, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(ids.split(size), mask.split(size), strict=True)


def _joined(parts: list[VideoFeatures]) -> VideoFeatures:
    vectors = [part.embedding for part in parts if part.embedding is not None]
    return VideoFeatures(
        torch.cat([part.tokens for part in parts]),
        torch.cat([part.mask for part in parts]),
        parts[0].grid,
        torch.cat(vectors) if vectors else None,
    )
