"""Codes of a whole folder of videos, computed once; training reads them instead of running the tokenizer.

Of every video, M evenly spaced frames are tokenised: short side to the tokenizer's size, centre crop. A cache is of one
tokenizer (its weights, not its name) and one M; others are refused. Shards are safetensors files with a JSON index
of their keys, see `mm.training.FeatureCache`; a killed run is continued by the same command.
Dims: M frames kept of each video, h = w codes along a side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mm.codecs.semantic_vq.tokenizer import SemanticVQTokenizer
from mm.data.video_files import video_key
from mm.training.feature_cache import FeatureCache
from mm.training.weights_digest import weights_digest

if TYPE_CHECKING:
    from mm.training.feature_job import FeatureJob

KIND = "codes of mm.codecs.semantic_vq"


class ClipCodes(NamedTuple):
    """What the cache holds of one video."""

    codes: Tensor
    """(M, h, w) int64."""
    times_s: Tensor
    """When the frames are shown, (M,) float64."""


class CodeCache:
    """Reads what `tokenize_videos` wrote.

    Args:
        folder: The cache.

    Raises:
        ValueError: the folder holds no codes.
    """

    def __init__(self, folder: str | Path) -> None:
        self.cache = FeatureCache(folder)
        identity = self.cache.identity or {}
        if identity.get("kind") != KIND:
            raise ValueError(f"{folder}: holds no codes of videos; mm video tokenize FOLDER --out {folder} writes them")
        self.folder, self.identity = Path(folder), identity

    @property
    def num_frames(self) -> int:
        """Frames kept of each video (M)."""
        return int(self.identity["num_frames"])

    @property
    def tokenizer(self) -> str:
        """Digest of the tokenizer that gave the codes, see `tokenizer_digest`."""
        return str(self.identity["tokenizer"])

    def __len__(self) -> int:
        return len(self.cache)

    def clip(self, path: Path, folder: Path) -> ClipCodes:
        """Codes of a video.

        Args:
            path: The file.
            folder: The folder of videos that was tokenised.

        Raises:
            KeyError: it was not tokenised, or has changed since.
            ValueError: nothing of it could be read then.
        """
        from mm.training.video_features import video_note

        key = video_key(path, folder)
        if key not in self.cache:
            raise KeyError(f"{self.folder} has no codes of {key}; run mm video tokenize {folder} --out {self.folder}")
        state = video_note(self.cache, key)
        if not state.good:
            raise ValueError(f"{path.name}: could not be read when it was tokenised ({state.note})")
        row = self.cache[key]
        return ClipCodes(row["codes"].to(torch.int64), row["times_s"])


def tokenizer_digest(model: SemanticVQTokenizer) -> str:
    """Name of what decides a code: encoder and codebook; decoder and usage counts may differ."""
    state = {
        name: value
        for name, value in model.state_dict().items()
        if name.startswith(("encoder.", "encode_task_layer.")) or name == "quantizer.codebook"
    }
    settings = asdict(model.config)
    return weights_digest({name: settings[name] for name in ("image_size", "patch_size", "encoder")}, state)


def codes_job(
    model: SemanticVQTokenizer,
    files: Iterable[Path],
    folder: Path,
    out: str | Path,
    *,
    num_frames: int,
    about: str = "",
    shard_items: int = 256,
    rank: int = 0,
    world: int = 1,
) -> tuple[FeatureJob, dict[str, Path]]:
    """What is missing in a cache, and the file of every key.

    Raises:
        ValueError: `out` holds codes of another tokenizer or another number of frames.
    """
    from mm.training.feature_job import FeatureJob

    keys = {video_key(path, folder): path for path in files}
    identity = {"kind": KIND, "tokenizer": tokenizer_digest(model), "num_frames": num_frames}
    job = FeatureJob(
        out, keys, identity=identity, about={"tokenizer": about}, shard_items=shard_items, rank=rank, world=world
    )
    return job, keys


def tokenize_videos(
    model: SemanticVQTokenizer,
    job: FeatureJob,
    files: Mapping[str, Path],
    *,
    batch_size: int = 8,
    workers: int = 0,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> int:
    """Compute the missing codes.

    Args:
        model: The tokenizer, on the device it is to run on.
        job: From `codes_job`.
        files: From `codes_job`.
        batch_size: Videos per pass.
        workers: Decoding processes.
        progress: Wraps the batches; for a bar.

    Returns:
        Videos that were tokenised now.
    """
    from mm.training.video_features import video_features

    device = model.encoder.cls_token.device
    dtype = torch.uint16 if model.config.quantizer.size <= 2**16 else torch.int32

    def compute(frames: Tensor) -> dict[str, Tensor]:
        return {"codes": model.encode(frames.to(device)).to(dtype)}

    return video_features(
        job,
        files,
        compute,
        preprocessing=model.image_preprocessing,
        num_frames=int(job.identity["num_frames"]),
        batch_size=batch_size,
        workers=workers,
        progress=progress,
    )
