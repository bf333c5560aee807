"""`mm video tokenize`: codes as the library gives them, and one line for every wrong input."""

import json

import av
import numpy as np
import pytest
import torch

from mm.cli import main
from mm.codecs.semantic_vq.presets import semantic_vq_tiny
from mm.vision import ImageProcessor, read_video


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return semantic_vq_tiny().save_pretrained(tmp_path_factory.mktemp("model") / "tok")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "noise.mp4"
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 80, 64, "yuv420p"
        for _ in range(9):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(rng.integers(0, 256, (64, 80, 3), dtype=np.uint8))))
        file.mux(stream.encode(None))
    return path


def test_the_file_holds_the_codes_of_the_frames(model, clip, tmp_path, capsys):
    output = tmp_path / "codes.npz"
    words = ["video", "tokenize", clip, "--model", model, "--frames", 3, "--output", output, "--json"]
    assert main([str(word) for word in words]) == 0
    result = json.loads(capsys.readouterr().out)
    tok = semantic_vq_tiny()
    frames = read_video(clip, 3)
    expected = tok.encode(ImageProcessor(tok.image_preprocessing)(list(frames.frames)))
    with np.load(output, allow_pickle=False) as found:
        assert torch.equal(torch.from_numpy(found["codes"].astype(np.int64)), expected)
        assert found["codes"].dtype == np.uint16
        assert np.array_equal(found["times_s"], frames.times_s)
        assert json.loads(str(found["config"]))["quantizer"]["size"] == 256
    assert result["frames"] == 3 and result["codes_per_frame"] == 64 and result["problems"] == []
    assert result["last_s"] == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["tokenize", "none.mp4", "--model", "nowhere"], 1, "no such video file"),
        (["tokenize", "none.mp4", "--frames", "0"], 2, "must be at least 1"),
        (["transcribe"], 2, "unknown word 'transcribe'"),
        ([], 2, "name a word"),
    ],
)
def test_wrong_input_is_one_line(words, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["video", *words]) == code
    assert message in capsys.readouterr().err


def test_help_has_an_example(capsys):
    assert main(["video", "--help"]) == 0
    assert "mm video tokenize CLIP.mp4" in capsys.readouterr().out
