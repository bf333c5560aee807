"""An index of clips on disk: their features, computed once, and search by text.

    index.json            which clips, their captions, the model
    features-*.safetensors   video tokens and contrastive vectors (float16 and float32), memory-mapped when read

Building goes on where it was interrupted. Another model is refused by the digest of its weights.
Dims: N clips, L video tokens, D width, E contrastive channels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm.checkpoint import read_json, write_aside, write_json
from mm.data.video_files import video_key
from mm.encoders.evilm.model import EViLM, TextFeatures, VideoFeatures
from mm.encoders.evilm.search import CHUNK_SIZE, RERANK_K, exhaustive_scores, nearest_clips
from mm.training.feature_cache import FeatureCache, refuse_other_identity
from mm.training.feature_job import FeatureJob
from mm.training.video_features import video_features, video_note
from mm.training.weights_digest import weights_digest

KIND = "clip features of mm.encoders.evilm"
INDEX_FILE = "index.json"


@dataclass(frozen=True, kw_only=True)
class IndexedClip:
    """One clip of an index."""

    file: str
    """Below the folder of videos."""
    key: str
    """Of its features."""
    captions: tuple[str, ...] = ()
    """What an annotation file said about it."""


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A clip that was found."""

    file: str
    """Below the folder of videos."""
    score: float
    """Matching logit, plus the cosine where the model has contrastive heads; comparable within one query."""
    cosine: float | None
    """Of the contrastive vectors; None without these heads."""
    captions: tuple[str, ...]
    """What an annotation file said about it."""


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """Answer to a query."""

    hits: tuple[Hit, ...]
    """Best first."""
    scored: int
    """Clips that went through fusion."""
    clips: int
    """Clips in the index that can be found."""
    seconds: float
    """For text, choice and fusion."""
    feature_bytes: int
    """Size of the video tokens that were read."""


def model_digest(model: EViLM) -> str:
    """Name of what decides a clip's features: the video side and the contrastive heads."""
    state = {name: value for name, value in model.state_dict().items() if name.startswith(("video.", "contrast."))}
    settings = asdict(model.config)
    names = ("video", "width", "positions", "position_grid", "frame_table", "image_size", "mean", "std")
    return weights_digest({name: settings[name] for name in names}, state)


def identity_of(model: EViLM, num_frames: int) -> dict[str, Any]:
    """What stored features must have been computed with."""
    return {"kind": KIND, "model": model_digest(model), "num_frames": num_frames}


def build_index(
    model: EViLM,
    videos: str | Path,
    captions: Mapping[Path, tuple[str, ...]],
    out: str | Path,
    *,
    name: str = "",
    num_frames: int = 4,
    batch_size: int = 8,
    shard_items: int = 256,
    workers: int = 0,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda items, total: items,
) -> tuple[VideoIndex, int]:
    """Encode clips and write the index.

    Args:
        model: On the device it is to run on.
        videos: Folder that all files lie in.
        captions: Every file to index, with what is said about it.
        out: Folder of the index; what it holds already is kept.
        name: Where the model comes from; `mm video search` loads it by this name.
        num_frames: Evenly spaced frames per clip.
        batch_size: Clips per pass.
        shard_items: Clips per file of the index.
        workers: Decoding processes.
        progress: Wraps (batches, how many); for a bar.

    Returns:
        The index, and how many clips were encoded now.

    Raises:
        ValueError: `out` holds features of another model or another number of frames.
    """
    videos, out = Path(videos), Path(out)
    keys = {video_key(path, videos): path for path in captions}
    job = FeatureJob(out, keys, identity=identity_of(model, num_frames), about={"model": name}, shard_items=shard_items)
    device = next(model.parameters()).device

    @torch.no_grad()
    def compute(frames: Tensor) -> dict[str, Tensor]:
        found = model.encode_video(frames.to(device))
        vectors = {} if found.embedding is None else {"embedding": found.embedding.float()}
        return {"tokens": found.tokens.half(), **vectors}

    batches = sum(-(-len(task.keys) // batch_size) for task in job.tasks)
    now = video_features(
        job,
        keys,
        compute,
        preprocessing=model.image_preprocessing,
        num_frames=num_frames,
        batch_size=batch_size,
        workers=workers,
        progress=lambda items: progress(items, batches),
    )
    clips = [
        {"file": path.relative_to(videos).as_posix(), "key": key, "captions": list(captions[path])}
        for key, path in keys.items()
    ]
    with write_aside(out / INDEX_FILE) as path:
        write_json(path, {"videos": str(videos.resolve()), "model": name, "num_frames": num_frames, "clips": clips})
    return VideoIndex(out), now


class VideoIndex:
    """Reads and searches what `build_index` wrote.

    Args:
        folder: The index.

    Attributes:
        clips: Those that can be found.
        notes: File -> what is wrong with it; unreadable files are here and not in `clips`.

    Raises:
        FileNotFoundError: no index there.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / INDEX_FILE).is_file():
            raise FileNotFoundError(f"{folder}: no index of videos; mm video index VIDEOS -o {folder} writes one")
        data = read_json(self.folder / INDEX_FILE)
        self.videos, self.model = Path(data["videos"]), str(data["model"])
        self.num_frames = int(data["num_frames"])
        self.cache = FeatureCache(self.folder)
        every = [IndexedClip(**clip | {"captions": tuple(clip["captions"])}) for clip in data["clips"]]
        states = {clip.file: video_note(self.cache, clip.key) for clip in every}
        self.clips = [clip for clip in every if states[clip.file].good]
        self.notes = {file: state.note for file, state in states.items() if state.note}

    def check(self, model: EViLM) -> None:
        """Refuse a model that the features are not of.

        Raises:
            ValueError: other weights or another size of frames.
        """
        identity = self.cache.identity or {}
        refuse_other_identity(self.folder, identity, identity_of(model, self.num_frames), self.cache.about)

    def features(self, clips: list[IndexedClip], like: Tensor | None = None) -> VideoFeatures:
        """Stored features of some clips, float32 on the CPU or in device and dtype of `like`."""
        keys = [clip.key for clip in clips]
        device, dtype = ("cpu", torch.float32) if like is None else (like.device, like.dtype)
        tokens = self.cache.gather(keys, "tokens").to(device, dtype)
        has_vectors = "embedding" in self.cache[keys[0]]
        embedding = self.cache.gather(keys, "embedding").to(device, dtype) if has_vectors else None
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=device)
        # Matching needs no grid of places: all tokens of a clip stand in one row.
        return VideoFeatures(tokens, mask, (1, 1, tokens.shape[1] - 1), embedding)

    @torch.no_grad()
    def search(
        self,
        model: EViLM,
        query: str,
        top: int = 5,
        *,
        rerank_k: int | None = RERANK_K,
        chunk_size: int = CHUNK_SIZE,
    ) -> SearchResult:
        """Find clips.

        Args:
            model: That the index was built with; `check` it once.
            query: Plain text.
            top: How many clips.
            rerank_k: Clips that go through fusion, the nearest by cosine; None scores all, as do models without
                contrastive heads.
            chunk_size: Clips in memory and in fusion at a time.

        Raises:
            ValueError: an empty query, one longer than the model reads, or an index without readable clips.
        """
        if not query.strip():
            raise ValueError("the query is empty; write what to look for")
        if not self.clips:
            raise ValueError(f"{self.folder}: none of its clips could be read, there is nothing to search")
        start = time.perf_counter()
        text = model.encode_text(**model.tokenize([query]))
        near = self._cosines(text)
        chosen = list(range(len(self.clips)))
        if near is not None and rerank_k is not None:
            chosen = nearest_clips(near[:, None], max(rerank_k, top))[:, 0].tolist()
        scores, size = [], 0
        for first in range(0, len(chosen), chunk_size):
            part = self.features([self.clips[number] for number in chosen[first : first + chunk_size]], text.tokens)
            size += 2 * part.tokens.numel()  # stored in two bytes each
            scores.append(exhaustive_scores(model, part, text, chunk_size=chunk_size)[:, 0].cpu())
        best = torch.cat(scores).topk(min(top, len(chosen)))
        found = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        hits = tuple(self._hit(chosen[place], score, near) for score, place in found)
        seconds = time.perf_counter() - start
        return SearchResult(hits=hits, scored=len(chosen), clips=len(self.clips), seconds=seconds, feature_bytes=size)

    def _hit(self, number: int, score: float, near: Tensor | None) -> Hit:
        clip = self.clips[number]
        cosine = None if near is None else float(near[number])
        return Hit(file=clip.file, score=score, cosine=cosine, captions=clip.captions)

    def _cosines(self, text: TextFeatures) -> Tensor | None:
        """Of all clips with one text, (N,); None without contrastive heads."""
        if text.embedding is None:
            return None
        keys = [clip.key for clip in self.clips]
        return self.cache.gather(keys, "embedding") @ text.embedding[0].float().cpu()
