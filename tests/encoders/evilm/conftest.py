"""Small models with random weights, and small video files."""

from __future__ import annotations

import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from mm.encoders.evilm import EViLM, Swin3DConfig, evilm_tiny

FOUR_STAGES = Swin3DConfig(embed_dim=8, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), drop_path=0.0)


def small(**fields) -> EViLM:
    """Four stages as in the published sizes: cells of 32 pixels with 2 x 2 codes of 64 each."""
    return evilm_tiny(
        **{"video": FOUR_STAGES, "fusion_layers": 1, "codebook_size": 64, "position_grid": 2, "answers": ()} | fields
    )


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def model() -> EViLM:
    """All heads; tables large enough that a wrong place changes the result."""
    model = small()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return model.eval()


@pytest.fixture
def build():
    """Makes a model of four stages with some fields of its own."""
    return small


def clip_frames(seed: int, count: int = 6, height: int = 64, width: int = 80) -> np.ndarray:
    """A coloured square that moves over a plain ground, (T, H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    frames = np.empty((count, height, width, 3), np.uint8)
    frames[:] = rng.integers(0, 256, 3, dtype=np.uint8)
    colour, top = rng.integers(0, 256, 3, dtype=np.uint8), int(rng.integers(height - 24))
    for number, frame in enumerate(frames):
        left = 4 + number * (width - 30) // count
        frame[top : top + 20, left : left + 20] = colour
    return frames


def write_clip(path: Path, seed: int = 0, *, count: int = 6, size: tuple[int, int] = (64, 80), rate: int = 5) -> Path:
    """A short clip; the file's ending chooses the container."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=rate)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.bit_rate = 2_000_000
        for frame in clip_frames(seed, count, *size):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        file.mux(stream.encode(None))
    return path


def write_sound(path: Path) -> Path:
    """A file without pictures."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 16_000
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    """Five readable clips in three containers, one of sound alone, with captions beside them."""
    folder = tmp_path_factory.mktemp("clips")
    for seed, name in enumerate(("a.mp4", "b.mkv", "deep/c.avi", "d.mp4", "e.mp4")):
        write_clip(folder / name, seed)
        (folder / name).with_suffix(".txt").write_text(f"a red square\na {('blue', 'green')[seed % 2]} circle\n")
    return folder


@pytest.fixture
def damaged(clips, tmp_path) -> Path:
    """The same with a sound file, an empty one and one that is cut off."""
    folder = tmp_path / "damaged"
    shutil.copytree(clips, folder)
    write_sound(folder / "sound.mp4")
    (folder / "empty.mp4").touch()
    long = write_clip(folder / "cut.mkv", 7, count=80)
    long.write_bytes(long.read_bytes()[: long.stat().st_size // 2])
    return folder
