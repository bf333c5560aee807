"""Reading videos: PyAV's own sequential read is the truth; damaged, turned, long and empty files."""

from fractions import Fraction

import av
import numpy as np
import pytest

from mm.vision import iter_frames, probe_video, read_video, video_io
from mm.vision.video_io import _quarter_turns

FORMATS = [
    ("mp4", "libx264", "yuv420p"),
    ("mkv", "libx264", "yuv420p"),
    ("webm", "libvpx", "yuv420p"),
    ("avi", "mpeg4", "yuv420p"),
    ("mov", "mjpeg", "yuvj420p"),
    ("mkv", "ffv1", "yuv444p"),
    ("ts", "mpeg2video", "yuv420p"),
    ("mp4", "libx265", "yuv420p"),
    ("webm", "libvpx-vp9", "yuv420p"),
    ("flv", "flv", "yuv420p"),
    ("mkv", "libx264", "yuv420p10le"),
    ("mov", "prores_ks", "yuv422p10le"),
    ("gif", "gif", "rgb8"),
]


def source(pattern, count, size="64x48", rate=25):
    """Frames of one of FFmpeg's synthetic sources."""
    graph = av.filter.Graph()
    node = graph.add(pattern, f"size={size}:rate={rate}")
    sink = graph.add("buffersink")
    node.link_to(sink)
    graph.configure()
    for _ in range(count):
        yield sink.pull()


def write(
    path, codec="libx264", pixels="yuv420p", count=30, *, rate=25, size="64x48", times=None, turn=0, options=None
):
    """A clip; `times` (milliseconds) make its frame rate variable, `turn` goes into its display matrix."""
    with av.open(str(path), "w", options=options or {}) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.width, stream.height = map(int, size.split("x"))
        stream.pix_fmt = pixels
        stream.gop_size = 12
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if turn:
            stream.set_display_rotation(turn)
        for number, frame in enumerate(source("testsrc", count, size, rate)):
            frame = frame.reformat(format=pixels)
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def sequential(path):
    """(pixels, time) of every frame, as PyAV reads them."""
    with av.open(str(path)) as file:
        return [(frame.to_ndarray(format="rgb24"), frame.time) for frame in file.decode(video=0)]


def assert_equal(clip, expected):
    assert len(clip.frames) == len(expected)
    for pixels, time_s, (wanted, wanted_time) in zip(clip.frames, clip.times_s, expected, strict=True):
        assert np.array_equal(pixels, wanted)
        assert time_s == pytest.approx(wanted_time)


@pytest.mark.parametrize("seek_from_s", [100.0, 0.0], ids=["read through", "by seeking"])
@pytest.mark.parametrize(("ending", "codec", "pixels"), FORMATS)
def test_frames_are_those_of_the_sequential_read(tmp_path, ending, codec, pixels, seek_from_s):
    path = write(tmp_path / f"clip.{ending}", codec, pixels)
    every = sequential(path)
    assert len(every) == 30
    clip = read_video(path, 5, seek_from_s=seek_from_s)
    if seek_from_s:
        assert_equal(clip, [every[index] for index in (0, 7, 15, 22, 29)])
    else:  # chosen by time: each must be a frame of the file at its own time, near its place
        times = [time for _, time in every]
        found = [int(np.argmin(np.abs(np.array(times) - time))) for time in clip.times_s]
        assert_equal(clip, [every[index] for index in found])
        assert np.abs(np.array(found) - [0, 7, 15, 22, 29]).max() <= 1
    assert clip.problems == ()


def test_all_frames_in_order(tmp_path):
    path = write(tmp_path / "clip.mp4", rate=10, count=17, size="66x50")
    found = list(iter_frames(path))
    for frame, (pixels, time_s) in zip(found, sequential(path), strict=True):
        assert np.array_equal(frame.pixels, pixels) and frame.time_s == pytest.approx(time_s)
    info = probe_video(path)
    assert (info.width, info.height, info.codec, info.average_fps) == (66, 50, "h264", 10)
    assert info.duration_s == pytest.approx(1.7)


@pytest.mark.parametrize("rate", [1, 12, 60, 240, Fraction(24000, 1001), Fraction(30000, 1001)], ids=str)
@pytest.mark.parametrize("ending", ["mp4", "avi", "webm"])
def test_frame_rates(tmp_path, ending, rate):
    codec = {"mp4": "libx264", "avi": "mpeg4", "webm": "libvpx"}[ending]
    path = write(tmp_path / f"clip.{ending}", codec, rate=rate, count=13)
    every = sequential(path)
    assert every[-1][1] == pytest.approx(float(12 / Fraction(rate)), abs=2e-3)
    assert_equal(read_video(path, 4), [every[index] for index in (0, 4, 8, 12)])
    sought = read_video(path, 4, seek_from_s=0.0)
    times = [round(time, 6) for _, time in every]
    assert_equal(sought, [every[times.index(round(float(time), 6))] for time in sought.times_s])


@pytest.mark.parametrize("seek_from_s", [100.0, 0.0])
@pytest.mark.parametrize(("ending", "codec"), [("mkv", "libx264"), ("mp4", "libx264"), ("webm", "libvpx-vp9")])
def test_variable_frame_rate(tmp_path, ending, codec, seek_from_s):
    times = [0, 40, 80, 120, 1120, 1160, 2900, 3000, 3040, 4000]
    path = write(tmp_path / f"clip.{ending}", codec, count=10, times=times)
    every = sequential(path)
    assert [round(1000 * time) for _, time in every] == times
    clip = read_video(path, 5, seek_from_s=seek_from_s)
    if seek_from_s:
        assert_equal(clip, [every[index] for index in (0, 2, 5, 7, 9)])
    else:
        duration = probe_video(path).duration_s
        shown = [max(i for i, time in enumerate(times) if time <= 1000 * k * duration / 4 + 1e-6) for k in range(5)]
        assert_equal(clip, [every[index] for index in shown])


@pytest.mark.parametrize("ending", ["mp4", "mov"])
@pytest.mark.parametrize("turn", [90, 180, 270])
def test_turned_clips_come_upright(tmp_path, ending, turn):
    path = write(tmp_path / f"clip.{ending}", turn=turn, count=5)
    with av.open(str(path)) as file:
        first = next(file.decode(video=0))
    plain = first.to_ndarray(format="rgb24")
    assert first.rotation % 360 == turn
    clip = read_video(path, 2)
    assert np.array_equal(clip.frames[0], np.rot90(plain, turn // 90))
    assert clip.frames.shape[1:] == ((64, 48, 3) if turn != 180 else (48, 64, 3))


def test_odd_angles_are_left_alone():
    assert [_quarter_turns(angle) for angle in (0, 90, -90, 180, -180, 89.9, 45)] == [0, 1, 3, 2, 2, 1, 0]


def test_one_frame(tmp_path):
    path = write(tmp_path / "clip.mp4", count=1)
    clip = read_video(path, 4)
    assert len(clip.frames) == 4 and all(np.array_equal(frame, sequential(path)[0][0]) for frame in clip.frames)
    assert len(list(iter_frames(path))) == 1


@pytest.mark.parametrize("seek_from_s", [100.0, 0.0], ids=["read through", "by seeking"])
@pytest.mark.parametrize("ending", ["mkv", "mp4"])
def test_a_cut_off_file_gives_the_frames_before_the_cut_and_says_so(tmp_path, ending, seek_from_s):
    path = tmp_path / f"clip.{ending}"
    write(path, count=200, options={"movflags": "faststart"} if ending == "mp4" else None)
    whole = sequential(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    clip = read_video(path, 4, seek_from_s=seek_from_s)
    assert len(clip.frames) == 4 and clip.problems
    assert clip.times_s[-1] < 0.9 * whole[-1][1]
    known = {round(1000 * time): pixels for pixels, time in whole}
    for pixels, time_s in zip(clip.frames, clip.times_s, strict=True):
        assert np.array_equal(pixels, known[round(1000 * time_s)])
    problems = []
    count = len(list(iter_frames(path, problems=problems)))
    assert 0 < count < 200 and problems


def test_broken_bytes_in_the_middle_end_the_frames(tmp_path):
    path = write(tmp_path / "clip.avi", "mjpeg", "yuvj420p", count=40)
    data = bytearray(path.read_bytes())
    start = len(data) // 2
    data[start : start + len(data) // 4] = bytes(len(data) // 4)
    path.write_bytes(data)
    clip = read_video(path, 3)
    assert clip.problems and 0 < clip.times_s[-1] < 39 / 25


def write_sound(path, codec="aac"):
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 16_000
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def test_files_without_moving_pictures(tmp_path):
    write_sound(tmp_path / "sound.mp4")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video " * 100)
    for name, message in (
        ("sound.mp4", r"sound\.mp4: holds no video \(streams: audio\)"),
        ("empty.mp4", "the file is empty"),
        ("text.mp4", "not a readable video file"),
    ):
        with pytest.raises(ValueError, match=message):
            read_video(tmp_path / name, 4)
    with pytest.raises(FileNotFoundError, match="no such video file"):
        read_video(tmp_path / "none.mp4", 4)


def test_a_header_without_pictures(tmp_path):
    path = write(tmp_path / "clip.mkv", count=60)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(bytes.fromhex("1F43B675"))])  # the first cluster of pictures starts here
    with pytest.raises(ValueError, match="not a readable video file"):
        read_video(path, 2)


def test_bad_arguments(tmp_path):
    path = write(tmp_path / "clip.mp4", count=2)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        read_video(path, 0)
    with pytest.raises(ValueError, match="no fixed number"):
        read_video(path, 2, "fps")


def test_a_ten_hour_file_is_sampled_without_reading_it(tmp_path, monkeypatch):
    """One frame every 200 s for 36,000 s: a few frames around the chosen times are decoded, not all."""
    path = write(tmp_path / "long.mkv", "mpeg4", count=180, times=[200_000 * i for i in range(180)], size="32x32")
    every = sequential(path)
    decoded = []
    original = video_io._Open.decoded

    def counted(self):
        for frame in original(self):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(video_io._Open, "decoded", counted)
    clip = read_video(path, 4)
    assert 4 <= len(decoded) < 100
    assert np.abs(clip.times_s - [0, 12_000, 24_000, 35_800]).max() <= 200
    for pixels, time_s in zip(clip.frames, clip.times_s, strict=True):
        assert np.array_equal(pixels, every[round(time_s / 200)][0])


def test_ten_hours_of_a_frame_per_second_cost_a_few_pictures(tmp_path):
    """36,000 pictures, of which a hundredth may be decoded to show four."""
    path, read = tmp_path / "long.mkv", []
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 16, 16, "yuv420p", 30
        pixels = [np.full((16, 16, 3), value, np.uint8) for value in (0, 80, 160, 240)]
        for number in range(36_000):
            frame = av.VideoFrame.from_ndarray(pixels[number * 4 // 36_000])
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))

    class Counted(video_io._Open):
        def decoded(self):
            for frame in super().decoded():
                read.append(frame.pts)
                yield frame

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video_io, "_Open", Counted)
        clip = read_video(path, 4)
    assert clip.info.duration_s == pytest.approx(36_000, abs=2)
    assert 4 <= len(read) < 360  # one in a hundred
    assert np.abs(clip.times_s - [0, 12_000, 24_000, 36_000]).max() <= 2
    found = [int(frame.mean()) for frame in clip.frames]
    assert np.abs(np.array(found) - [0, 80, 160, 240]).max() <= 8


def test_jitter_is_a_function_of_the_seed(tmp_path):
    path = write(tmp_path / "clip.mp4", count=30)
    times = [read_video(path, 3, "segment", seed=seed).times_s.tolist() for seed in (1, 1, 2)]
    assert times[0] == times[1] != times[2]
