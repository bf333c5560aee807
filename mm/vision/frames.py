"""Which frames of a video to look at: a few indices out of many, as a pure function of its arguments."""

from __future__ import annotations

import random
from typing import Literal, get_args

FrameRule = Literal["uniform", "segment", "fps"]


def sample_frames(
    count: int,
    num: int | None = None,
    rule: FrameRule = "uniform",
    *,
    seed: int | None = None,
    source_fps: float | None = None,
    target_fps: float | None = None,
) -> list[int]:
    """Choose frames.

    - "uniform": `num` frames at equal distance, the first and the last among them.
    - "segment": `num` equal segments; the middle of each, or with a `seed` a random frame of each (training jitter).
    - "fps": one frame every `source_fps / target_fps` frames; `num`, if given, thins them uniformly to at most `num`.

    Args:
        count: Frames in the video.
        num: How many to choose; needed except for "fps". Frames repeat when `num > count`.
        rule: See above.
        seed: Jitter for "segment"; an error with the other rules, which are deterministic.
        source_fps: Frames per second of the video; only "fps".
        target_fps: Frames per second wanted; only "fps".

    Returns:
        Ascending indices in 0..count - 1.

    Raises:
        ValueError: no frames, or an argument is missing or would be ignored.

    Example:
        >>> sample_frames(9, 3), sample_frames(9, 3, "segment")
        ([0, 4, 8], [1, 4, 7])
        >>> sample_frames(8, rule="fps", source_fps=4, target_fps=2)
        [0, 2, 4, 6]
    """
    if rule not in get_args(FrameRule):
        raise ValueError(f"unknown frame rule {rule!r}; known: {', '.join(get_args(FrameRule))}")
    if count < 1 or (num is not None and num < 1):
        raise ValueError(f"need at least one frame in the video and in the choice, got count={count}, num={num}")
    if seed is not None and rule != "segment":
        raise ValueError(f"seed={seed} has no effect with rule={rule!r}; use rule='segment'")
    if rule == "fps":
        return _by_rate(count, num, source_fps, target_fps)
    if source_fps is not None or target_fps is not None:
        raise ValueError(f"source_fps and target_fps have no effect with rule={rule!r}; use rule='fps'")
    if num is None:
        raise ValueError(f"rule={rule!r} needs num, the number of frames")
    return _uniform(count, num) if rule == "uniform" else _segments(count, num, seed)


def _uniform(count: int, num: int) -> list[int]:
    if num == 1:
        return [(count - 1) // 2]
    return [int(i * (count - 1) / (num - 1) + 0.5) for i in range(num)]


def _segments(count: int, num: int, seed: int | None) -> list[int]:
    generator = random.Random(seed)
    place = generator.random if seed is not None else lambda: 0.5
    return [min(int((i + place()) * count / num), count - 1) for i in range(num)]


def _by_rate(count: int, num: int | None, source_fps: float | None, target_fps: float | None) -> list[int]:
    if not source_fps or not target_fps or source_fps <= 0 or target_fps <= 0:
        raise ValueError(f"rule='fps' needs positive rates, got source_fps={source_fps}, target_fps={target_fps}")
    step = max(source_fps / target_fps, 1.0)  # a rate above the video's own gives every frame once
    chosen = [int(i * step) for i in range(int((count - 1) / step) + 1)]
    return chosen if num is None or len(chosen) <= num else [chosen[i] for i in _uniform(len(chosen), num)]
