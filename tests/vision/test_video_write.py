"""Clips that we write are read back."""

import numpy as np
import pytest

from mm.vision import read_video
from mm.vision.video_write import write_video


@pytest.mark.parametrize("ending", ["mp4", "mkv", "mov"])
def test_a_clip_comes_back(tmp_path, ending):
    frames = np.full((5, 32, 48, 3), 30, np.uint8)
    for number, frame in enumerate(frames):
        frame[8:24, 8 * number : 8 * number + 16] = (200, 60, 120)
    path = write_video(tmp_path / f"clip.{ending}", frames, fps=2, scale=2)
    clip = read_video(path, 5)
    assert clip.frames.shape == (5, 64, 96, 3) and clip.times_s == pytest.approx([0, 0.5, 1, 1.5, 2])
    large = frames.repeat(2, 1).repeat(2, 2).astype(int)
    assert np.abs(clip.frames - large).mean() < 6  # chroma is stored at half the size


def test_odd_sides_lose_a_row(tmp_path):
    path = write_video(tmp_path / "clip.mp4", np.zeros((2, 33, 31, 3), np.uint8))
    assert read_video(path, 1).frames.shape == (1, 32, 30, 3)


@pytest.mark.parametrize(
    ("name", "frames", "message"),
    [
        ("a.mp4", np.zeros((2, 8, 8, 3)), "must be .T, H, W, 3. uint8"),
        ("a.mp4", np.zeros((0, 8, 8, 3), np.uint8), "at least one"),
        ("a.avi", np.zeros((2, 8, 8, 3), np.uint8), "written as .mp4, .mkv, .mov"),
    ],
)
def test_what_cannot_be_written(tmp_path, name, frames, message):
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / name, frames)
    assert not list(tmp_path.iterdir())
