"""Reading video files of any container: all frames in order, or a few of them without reading the whole file.

Frames are what PyAV's own sequential read gives, turned upright. Positions are times, not numbers: with a variable
frame rate the two differ. What is wrong with a file is an error where nothing can be read, and a sentence in
`problems` where a part can.
Dims: T frames, H height, W width (pixels).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mm.extras import require
from mm.vision.frames import FrameRule, sample_frames

logger = logging.getLogger(__name__)

SEEK_FROM_S = 120.0
"""A file that is longer is sampled by seeking, a shorter one by reading it through."""
TICKS = 1_000_001
"""Steps that a long video is divided into to choose times by the rules for frame numbers."""
STEPS_BACK_S = (0.0, 2.0, 10.0, 60.0)
"""A container's index may point behind the wanted time; the search then starts this much earlier."""


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What the header of a file says; a header can be wrong."""

    name: str
    """Of the file, for messages."""
    container: str
    """Format names, for instance "mov,mp4,m4a"."""
    codec: str
    """Of the video stream."""
    width: int
    """Of the picture as it is stored, before it is turned upright, pixels."""
    height: int
    """Of the picture as it is stored, before it is turned upright, pixels."""
    duration_s: float | None
    """Length; None: the header does not say."""
    average_fps: float | None
    """Frames per second on average; None: the header does not say."""


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoFrame:
    """One picture of a video."""

    pixels: np.ndarray
    """Upright RGB, (H, W, 3) uint8."""
    time_s: float
    """When it is shown, on the clock of the file; NaN for raw streams without one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoClip:
    """Some frames of a video."""

    frames: np.ndarray
    """(T, H, W, 3) uint8 RGB in time order."""
    times_s: np.ndarray
    """(T,) float64."""
    info: VideoInfo
    """Of the file."""
    problems: tuple[str, ...] = ()
    """What is wrong with the file, one sentence each; empty for a sound file."""


@dataclass
class _Open:
    """An open container with its video stream."""

    path: str | Path
    container: Any
    stream: Any
    info: VideoInfo
    problems: list[str] = field(default_factory=list)

    def say(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)

    def time(self, frame: Any) -> float:
        return float("nan") if frame.pts is None else float(frame.pts * frame.time_base)

    def decoded(self) -> Iterator[Any]:
        """Frames from the current place on; damage ends them and is noted."""
        av, last = _av(), None
        try:
            for frame in self.container.decode(self.stream):
                if frame.is_corrupt and last is not None:
                    self.say(f"damaged picture after {last:.3f} s: what follows is not used")
                    return
                if not frame.is_corrupt:
                    last = self.time(frame)
                    yield frame
        except av.FFmpegError as error:
            where = "before the first frame" if last is None else f"after {last:.3f} s"
            self.say(f"cannot be decoded {where} ({error.strerror}): what follows is not used")


def probe_video(path: str | Path) -> VideoInfo:
    """What the header says; no frame is kept.

    Raises:
        FileNotFoundError, ValueError: see `read_video`.
    """
    with _opened(path) as video:
        return video.info


def iter_frames(path: str | Path, *, problems: list[str] | None = None) -> Iterator[VideoFrame]:
    """All frames in order, one at a time in memory.

    Args:
        path: Video file.
        problems: Receives a sentence for everything that is wrong with the file, at the latest when the frames end;
            without it the sentences are logged as warnings.

    Raises:
        FileNotFoundError, ValueError: see `read_video`.
    """
    with _opened(path) as video:
        last = None
        for frame in video.decoded():
            last = frame
            yield VideoFrame(pixels=_upright(frame), time_s=video.time(frame))
        if last is None:
            raise ValueError(_nothing(video))
        _check_end(video, last)
        for problem in video.problems:
            if problems is None:
                logger.warning("%s: %s", video.info.name, problem)
            else:
                problems.append(problem)


def read_video(
    path: str | Path,
    num_frames: int,
    rule: FrameRule = "uniform",
    *,
    seed: int | None = None,
    seek_from_s: float = SEEK_FROM_S,
) -> VideoClip:
    """Choose frames of a video.

    A file of up to `seek_from_s` is read through and chosen from by frame number. A longer one is cut into equal
    times, and each is looked up by seeking, so that the cost does not grow with its length; with a constant frame rate
    both give evenly spaced frames.

    Args:
        path: Video file of any container that FFmpeg reads.
        num_frames: Frames to return (T); they repeat if the video has fewer.
        rule: "uniform" (first to last frame) or "segment" (one per equal part), see `sample_frames`.
        seed: Jitter of "segment".
        seek_from_s: See above, seconds.

    Raises:
        FileNotFoundError: no such file.
        ValueError: empty, no video file, no video in it (audio only), not one frame that can be decoded, or a rule
            that needs a frame rate.
        ImportError: PyAV is missing.
    """
    if rule == "fps":
        raise ValueError("rule='fps' gives no fixed number of frames; use 'uniform' or 'segment'")
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    with _opened(path) as video:
        long = video.info.duration_s is not None and video.info.duration_s > seek_from_s
        found = (_by_seeking if long else _by_reading)(video, num_frames, rule, seed)
    sizes = {frame.pixels.shape[:2] for frame in found}
    if len(sizes) > 1:
        raise ValueError(f"{video.info.name}: the picture size changes in the file ({sorted(sizes)}); re-encode it")
    return VideoClip(
        frames=np.stack([frame.pixels for frame in found]),
        times_s=np.array([frame.time_s for frame in found]),
        info=video.info,
        problems=tuple(video.problems),
    )


def _by_reading(video: _Open, num: int, rule: FrameRule, seed: int | None) -> list[VideoFrame]:
    """Once through to count, once more to keep: memory for the chosen frames alone."""
    count, last = 0, None
    for frame in video.decoded():
        count, last = count + 1, frame
    if last is None:
        raise ValueError(_nothing(video))
    _check_end(video, last)
    wanted = sample_frames(count, num, rule, seed=seed)
    kept: dict[int, VideoFrame] = {}
    with _opened(video.path) as again:
        for number, frame in enumerate(again.decoded()):
            if number in wanted:
                kept[number] = VideoFrame(pixels=_upright(frame), time_s=again.time(frame))
            if number == wanted[-1]:
                break
    return [kept[number] for number in wanted]


def _by_seeking(video: _Open, num: int, rule: FrameRule, seed: int | None) -> list[VideoFrame]:
    """The frames shown at chosen times; where the file turns out to end early, the times are chosen anew."""
    start, end = _start(video), _start(video) + (video.info.duration_s or 0.0)
    shares = [tick / (TICKS - 1) for tick in sample_frames(TICKS, num, rule, seed=seed)]
    while True:
        found: list[Any] = []
        for share in shares:
            frame = _shown_at(video, start + share * (end - start))
            if frame is None:
                break
            found.append(frame)
        if len(found) == num:
            _check_end(video, found[-1], whole=shares[-1] == 1.0)
            return [VideoFrame(pixels=_upright(frame), time_s=video.time(frame)) for frame in found]
        good = max((video.time(frame) for frame in found), default=start)
        if not found or good >= end:
            raise ValueError(_nothing(video))
        video.say(f"nothing can be read near {start + shares[len(found)] * (end - start):.3f} s: frames end before it")
        end = good


def _shown_at(video: _Open, time_s: float) -> Any:
    """The last frame that starts at or before a time; the first of the file before that. None: nothing decodes."""
    av = _av()
    for back in (*STEPS_BACK_S, None):
        place = _start(video) if back is None else max(time_s - back, _start(video))
        try:
            video.container.seek(int(place / video.stream.time_base), stream=video.stream, backward=True)
        except av.FFmpegError:
            continue
        best = None
        for frame in video.decoded():
            if best is not None and video.time(frame) > time_s + 1e-9:
                break
            late = video.time(frame) > time_s + 1e-9
            best = frame
            if late:
                break
        if best is not None and (video.time(best) <= time_s + 1e-9 or back is None or place == _start(video)):
            return best
    return None


@contextmanager
def _opened(path: str | Path) -> Iterator[_Open]:
    av, path = _av(), Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such video file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty")
    try:
        container = av.open(str(path))
    except av.FFmpegError as error:
        raise ValueError(f"{path}: not a readable video file ({error.strerror}); copy or re-encode it") from error
    with container:
        streams = [stream for stream in container.streams.video if not _is_cover(stream)]
        if not streams:
            kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "none"
            raise ValueError(f"{path}: holds no video (streams: {kinds}); give a file with moving pictures")
        stream = streams[0]
        stream.thread_type = "AUTO"
        yield _Open(path, container, stream, _info(path, container, stream))


def _info(path: Path, container: Any, stream: Any) -> VideoInfo:
    duration = None
    if stream.duration is not None:
        duration = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        duration = container.duration / _av().time_base
    rate = stream.average_rate
    return VideoInfo(
        name=path.name,
        container=container.format.name,
        codec=stream.codec_context.name,
        width=stream.codec_context.width,
        height=stream.codec_context.height,
        duration_s=duration,
        average_fps=float(rate) if rate else None,
    )


def _upright(frame: Any) -> np.ndarray:
    """RGB of a frame, turned as its display matrix says; other angles than quarter turns are left as they are."""
    pixels = frame.to_ndarray(format="rgb24")
    turns = _quarter_turns(frame.rotation)
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _quarter_turns(degrees: float) -> int:
    """Counter-clockwise quarter turns of an angle.

    Example:
        >>> _quarter_turns(90), _quarter_turns(-90), _quarter_turns(180), _quarter_turns(30)
        (1, 3, 2, 0)
    """
    return round(degrees / 90) % 4 if abs(degrees / 90 - round(degrees / 90)) < 0.02 else 0


def _check_end(video: _Open, last: Any, *, whole: bool = True) -> None:
    """Say it if the last frame ends well before the header's end."""
    if not whole or video.info.duration_s is None:
        return
    step = 1 / video.info.average_fps if video.info.average_fps else 0.0
    shown = video.time(last) - _start(video) + max(step, float((last.duration or 0) * last.time_base))
    if video.info.duration_s - shown > max(0.5, 2 * step, 0.02 * video.info.duration_s):
        video.say(f"frames end at {shown:.3f} s, the header says {video.info.duration_s:.3f} s")


def _start(video: _Open) -> float:
    return float((video.stream.start_time or 0) * video.stream.time_base)


def _is_cover(stream: Any) -> bool:
    """A cover picture of an audio file is no video."""
    return bool(stream.disposition & _av().stream.Disposition.attached_pic)


def _nothing(video: _Open) -> str:
    reason = f" ({'; '.join(video.problems)})" if video.problems else ""
    return f"{video.info.name}: not one frame could be decoded{reason}"


def _av() -> Any:
    return require("av", extra="video", purpose="Reading a video")
