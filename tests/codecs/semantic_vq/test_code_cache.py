"""Codes of a folder of videos: what the cache holds, kill -9, other tokenizers, damaged files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from mm.cli import main
from mm.codecs.semantic_vq.code_cache import CodeCache, codes_job, tokenize_videos, tokenizer_digest
from mm.codecs.semantic_vq.presets import semantic_vq_tiny
from mm.data.video_files import video_files
from mm.vision import ImageProcessor, read_video


def write_noise(path: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 80, 64, "yuv420p"
        for _ in range(9):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(rng.integers(0, 256, (64, 80, 3), dtype=np.uint8))))
        file.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    (folder / "deep").mkdir()
    for seed, name in enumerate(("a.mp4", "b.mkv", "deep/c.avi", "d.mp4", "e.mp4", "f.mp4")):
        write_noise(folder / name, seed)
    return folder


@pytest.fixture(scope="module")
def model():
    return semantic_vq_tiny()


def run(model, folder, out, **options) -> int:
    job, files = codes_job(model, video_files(folder), folder, out, num_frames=4, shard_items=2, **options)
    return tokenize_videos(model, job, files, batch_size=2)


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("features-*.safetensors")}


def test_the_cache_holds_the_codes_of_each_clip(model, folder, tmp_path):
    assert run(model, folder, tmp_path) == 6
    cache = CodeCache(tmp_path)
    assert len(cache) == 6 and cache.num_frames == 4 and cache.tokenizer == tokenizer_digest(model)
    for name in ("deep/c.avi", "f.mp4"):
        found, clip = cache.clip(folder / name, folder), read_video(folder / name, 4)
        expected = model.encode(ImageProcessor(model.image_preprocessing)(list(clip.frames)))
        assert torch.equal(found.codes, expected)
        assert np.array_equal(found.times_s.numpy(), clip.times_s)
    assert run(model, folder, tmp_path) == 0


def test_several_processes_write_the_same_files(model, folder, tmp_path):
    run(model, folder, tmp_path / "one")
    for rank in (1, 0):
        run(model, folder, tmp_path / "two", rank=rank, world=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two") and len(contents(tmp_path / "one")) == 3


def test_a_killed_run_goes_on(model, folder, tmp_path):
    run(model, folder, tmp_path / "whole")
    model.save_pretrained(tmp_path / "tok")
    words = ["video", "tokenize", folder, "--model", tmp_path / "tok", "--out", tmp_path / "codes"]
    words += ["--frames", 4, "--shard-items", 2, "--batch-size", 1]
    with subprocess.Popen([sys.executable, "-m", "mm", *map(str, words)], stderr=subprocess.DEVNULL) as child:
        while child.poll() is None and not list((tmp_path / "codes").glob("features-*.json")):
            time.sleep(0.002)
        os.kill(child.pid, signal.SIGKILL)
    before = contents(tmp_path / "codes")
    assert before
    assert main([str(word) for word in words]) == 0
    assert contents(tmp_path / "codes") == contents(tmp_path / "whole")
    assert not [path for path in (tmp_path / "codes").iterdir() if path.name.startswith(".")]


def test_another_tokenizer_or_other_frames_are_refused(model, folder, tmp_path):
    run(model, folder, tmp_path)
    other = semantic_vq_tiny(seed=1)
    with pytest.raises(ValueError, match=r"tokenizer: .* there, .* asked for"):
        run(other, folder, tmp_path)
    with pytest.raises(ValueError, match="num_frames: 4 there, 8 asked for"):
        codes_job(model, video_files(folder), folder, tmp_path, num_frames=8)
    used = semantic_vq_tiny()
    with torch.no_grad():  # what does not decide a code does not count
        used.quantizer.cluster_size += 1
        used.decode_task_layer.state_dict()["0.weight"].add_(1)
    assert tokenizer_digest(used) == tokenizer_digest(model)


def test_a_changed_file_is_tokenised_again_and_an_unknown_one_is_said(model, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "clips")
    run(model, tmp_path / "clips", tmp_path / "codes")
    changed = tmp_path / "clips" / "a.mp4"
    before = CodeCache(tmp_path / "codes").clip(changed, tmp_path / "clips").codes
    write_noise(changed, 99)
    with pytest.raises(KeyError, match=r"no codes of a\.mp4"):
        CodeCache(tmp_path / "codes").clip(changed, tmp_path / "clips")
    assert run(model, tmp_path / "clips", tmp_path / "codes") == 1
    assert not torch.equal(CodeCache(tmp_path / "codes").clip(changed, tmp_path / "clips").codes, before)


def test_a_folder_without_codes(tmp_path):
    with pytest.raises(ValueError, match="holds no codes of videos; mm video tokenize FOLDER"):
        CodeCache(tmp_path)


def test_the_command_names_damaged_files(model, folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "clips")
    (tmp_path / "clips" / "bad.mp4").write_text("no video " * 50)
    model.save_pretrained(tmp_path / "tok")
    words = ["video", "tokenize", tmp_path / "clips", "--model", tmp_path / "tok", "--out", tmp_path / "codes"]
    words += ["--parquet", tmp_path / "index.parquet", "--json"]
    assert main([str(word) for word in words]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["videos"], result["unreadable"], result["frames"]) == (7, 1, 16)
    assert list(result["problems"]) == ["bad.mp4 (450 bytes)"] and "not a readable" in str(result["problems"])
    with pytest.raises(ValueError, match=r"bad\.mp4: could not be read when it was tokenised"):
        CodeCache(tmp_path / "codes").clip(tmp_path / "clips" / "bad.mp4", tmp_path / "clips")
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(tmp_path / "index.parquet").to_pydict()
    assert "deep/c.avi" in str(table["key"]) and len(table["key"]) == 7
    for name in ("a.mp4", "b.mkv", "d.mp4", "e.mp4", "f.mp4", "deep/c.avi"):
        (tmp_path / "clips" / name).unlink()
    assert main([str(word) for word in words]) == 1  # nothing readable is left
