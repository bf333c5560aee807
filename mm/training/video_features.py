"""One pass of a frozen model over many videos, into a feature cache: choose frames, prepare, compute, store.

Besides what the model computes, a row holds `times_s` (T,) of its frames, `good` (1, or 0 for a video of which nothing
can be read: its features are of black frames and must not be used) and `note`, what is wrong with the file. So a
killed pass goes on where it stopped, and what it had found out about damaged files is known afterwards.
Dims: B videos, T frames, S side in pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mm.training.feature_cache import FeatureCache
from mm.training.feature_job import FeatureJob
from mm.vision import ImagePreprocessing, ImageProcessor, read_video

logger = logging.getLogger(__name__)
Compute = Callable[[Tensor], Mapping[str, Tensor]]
"""(B, T, 3, S, S) uint8 on the CPU -> name -> (B, ...)."""


class VideoNote(NamedTuple):
    """What is known about a video besides its features."""

    good: bool
    """False: nothing could be read."""
    note: str
    """What is wrong with the file; "" for a sound one."""


def video_features(
    job: FeatureJob,
    files: Mapping[str, Path],
    compute: Compute,
    *,
    preprocessing: ImagePreprocessing,
    num_frames: int,
    batch_size: int = 8,
    workers: int = 0,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> int:
    """Compute what is missing in a cache.

    Args:
        job: Whose keys name videos.
        files: Key -> file.
        compute: The model.
        preprocessing: Of its frames, values in 0..1.
        num_frames: Evenly spaced frames per video (T).
        batch_size: Videos per pass (B).
        workers: Decoding processes.
        progress: Wraps the batches; for a bar.

    Returns:
        Videos that were computed now.
    """
    read = ReadClips(files, preprocessing, num_frames)
    loader = job.loader(read, batch_size=batch_size, workers=workers)
    collector = job.collector()
    for batch in progress(loader):
        found = {name: value.cpu() for name, value in compute(batch["frames"]).items()}
        collector.add(batch["keys"], found | {name: batch[name] for name in ("times_s", "good", "note")})
    collector.close()
    return collector.written


@dataclass
class ReadClips:
    """From keys to a batch of frames; a video that cannot be read is black and marked."""

    files: Mapping[str, Path]
    preprocessing: ImagePreprocessing
    num_frames: int

    def __call__(self, keys: list[str]) -> dict[str, Any]:
        clips = [self.one(key) for key in keys]
        return {"keys": keys} | {
            "frames": torch.stack([clip["frames"] for clip in clips]),
            "times_s": torch.stack([clip["times_s"] for clip in clips]),
            "good": torch.tensor([clip["good"] for clip in clips], dtype=torch.uint8),
            "note": [_bytes(clip["note"]) for clip in clips],
        }

    def one(self, key: str) -> dict[str, Any]:
        """Frames (T, 3, S, S) uint8, times, and what is wrong."""
        try:
            clip = read_video(self.files[key], self.num_frames)
        except (ValueError, OSError) as error:
            logger.warning("%s", error)
            sides = (self.preprocessing.height, self.preprocessing.width)
            black = torch.zeros(self.num_frames, 3, *sides, dtype=torch.uint8)
            note = str(error).removeprefix(f"{self.files[key]}: ").removeprefix(f"{self.files[key].name}: ")
            return {"frames": black, "times_s": torch.zeros(self.num_frames).double(), "good": 0, "note": note}
        for problem in clip.problems:
            logger.warning("%s: %s", clip.info.name, problem)
        frames = frames_uint8(clip.frames, self.preprocessing)
        times = torch.from_numpy(clip.times_s).double()
        return {"frames": frames, "times_s": times, "good": 1, "note": "; ".join(clip.problems)}


def frames_uint8(frames: Iterable[Any], preprocessing: ImagePreprocessing) -> Tensor:
    """Frames (T, H, W, 3) uint8 resized and cropped, (T, 3, S, S) uint8; `preprocessing` must not normalise.

    Raises:
        ValueError: it does.
    """
    if preprocessing.mean != (0.0, 0.0, 0.0) or preprocessing.std != (1.0, 1.0, 1.0):
        raise ValueError(f"frames stay in 0..255, but this preprocessing normalises with mean {preprocessing.mean}")
    return (ImageProcessor(preprocessing)(list(frames)) * 255).round().to(torch.uint8)


def video_note(cache: FeatureCache, key: str) -> VideoNote:
    """What the pass has found out about a video."""
    row = cache[key]
    return VideoNote(bool(row["good"]), bytes(row["note"].tolist()).decode())


def _bytes(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)
