"""Writing short clips: H.264 in the container of the file's ending, as every browser plays it.

Dims: T frames, H, W sides in pixels.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from mm.checkpoint import write_aside
from mm.extras import require


def write_video(path: str | Path, frames: np.ndarray, *, fps: float = 4, scale: int = 1, quality: int = 12) -> Path:
    """Write frames as a video.

    Args:
        path: File; its ending names the container (.mp4, .mkv, .mov).
        frames: RGB, (T, H, W, 3) uint8; odd sides lose their last row or column, which H.264 cannot hold.
        fps: Frames per second.
        scale: Every pixel becomes scale x scale.
        quality: H.264's rate factor; 0 is the best, 51 the worst.

    Returns:
        The file.

    Raises:
        ValueError: frames of another shape or type, or no frame.
        ImportError: PyAV is missing.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise ValueError(f"frames must be (T, H, W, 3) uint8 with at least one, got {frames.dtype} {frames.shape}")
    av: Any = require("av", extra="video", purpose="Writing a video")
    large = frames.repeat(scale, 1).repeat(scale, 2)
    height, width = large.shape[1] // 2 * 2, large.shape[2] // 2 * 2
    path = Path(path)
    with write_aside(path) as temporary, av.open(str(temporary), "w", format=_container(path)) as file:
        stream = file.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"crf": str(quality), "preset": "veryfast"}
        for frame in large[:, :height, :width]:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame))))
        file.mux(stream.encode(None))
    return path


def _container(path: Path) -> str:
    known = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov"}
    if path.suffix.lower() not in known:
        raise ValueError(f"{path}: videos are written as {', '.join(known)}")
    return known[path.suffix.lower()]
