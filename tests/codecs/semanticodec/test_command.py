"""`mm codec`: files, folders, shards, damaged and foreign files, exact lengths."""

import io
import json
import tarfile
import wave

import numpy as np
import pytest
import soundfile
import torch

from mm.cli import main
from mm.codecs.semanticodec import Sampling, SemantiCodec, read_tokens, tiny, write_tokens
from mm.codecs.semanticodec.codec import SemantiCodec as Codec
from mm.codecs.semanticodec.files import EncodeOptions, check_fits, decode_file, encode_file


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(Codec(tiny()).eval().save_pretrained(tmp_path_factory.mktemp("model") / "codec"))


@pytest.fixture(scope="module")
def codec(model):
    return SemantiCodec.from_pretrained(model)


def write_sound(path, samples=24_000, rate=16_000, channels=1, seed=0, scale=0.1):
    path.parent.mkdir(parents=True, exist_ok=True)
    sound = scale * np.random.default_rng(seed).standard_normal((samples, channels))
    soundfile.write(path, sound.clip(-1, 1).squeeze(), rate)
    return path


def run(capsys, *words):
    code = main(["codec", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("rate, samples", [(16_000, 24_001), (44_100, 50_000), (8_000, 9_999), (192_000, 200_000)])
def test_a_file_there_and_back_keeps_its_length(model, tmp_path, capsys, rate, samples):
    source = write_sound(tmp_path / "in.wav", samples, rate, channels=2)
    code, out, _ = run(capsys, "encode", source, tmp_path / "out.stk", "--model", model, "--json")
    assert code == 0
    (row,) = json.loads(out)["files"]
    assert row["seconds"] == pytest.approx(samples / rate, abs=1e-4)
    assert row["bytes"] == (tmp_path / "out.stk").stat().st_size
    code, _, _ = run(capsys, "decode", tmp_path / "out.stk", tmp_path / "back.wav", "--model", model, "--steps", 1)
    assert code == 0
    with wave.open(str(tmp_path / "back.wav")) as file:
        assert file.getnframes() == -(-samples * 16_000 // rate)
    code, out, _ = run(capsys, "info", tmp_path / "out.stk", "--json")
    info = json.loads(out)
    assert code == 0 and info["source_rate"] == rate and info["token_rate"] == 50 and info["semantic_vocab"] == 256


def test_folders_are_mirrored_and_continued(model, tmp_path, capsys):
    for name in ("a.wav", "deep/b.flac", "deep/c.wav"):
        write_sound(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("no sound")
    (tmp_path / "in" / "bad.wav").write_text("no sound")
    code, out, _ = run(capsys, "encode", tmp_path / "in", tmp_path / "out", "--model", model)
    assert code == 1 and "3 done, 1 failed" in out and "bad.wav" in out
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.stk"))
    assert found == ["a.stk", "deep/b.stk", "deep/c.stk"]
    (tmp_path / "in" / "bad.wav").unlink()
    (tmp_path / "out" / "a.stk").unlink()
    _, out, _ = run(capsys, "encode", tmp_path / "in", tmp_path / "out", "--model", model, "--json")
    assert [row["out"] for row in json.loads(out)["files"]] == [str(tmp_path / "out" / "a.stk")]
    _, out, _ = run(capsys, "encode", tmp_path / "in", tmp_path / "part", "--model", model, "--part", "1/2", "--json")
    assert len(json.loads(out)["files"]) == 1
    code, _, _ = run(capsys, "decode", tmp_path / "out", tmp_path / "back", "--model", model, "--steps", 1)
    assert code == 0 and len(list((tmp_path / "back").rglob("*.wav"))) == 3


def test_two_inputs_of_one_name_are_refused(model, tmp_path, capsys):
    write_sound(tmp_path / "in" / "a.wav")
    write_sound(tmp_path / "in" / "a.flac")
    code, _, err = run(capsys, "encode", tmp_path / "in", tmp_path / "out", "--model", model)
    assert code == 1 and "two inputs would write" in err


def test_shards(model, codec, tmp_path, capsys):
    expected = encode_file(codec, write_sound(tmp_path / "0.wav"))
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        for name, data in (
            ("x/0.wav", (tmp_path / "0.wav").read_bytes()),
            ("x/0.json", b"{}"),
            ("x/1.wav", b"broken"),
            ("x/1.json", b"{}"),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    code, out, _ = run(capsys, "encode", tmp_path / "in.tar", tmp_path / "out.tar", "--model", model)
    assert code == 1 and "x/1.wav" in out
    with tarfile.open(tmp_path / "out.tar") as tar:
        assert tar.getnames() == ["x/0.stk", "x/0.json", "x/1.json"]
        (tmp_path / "0.stk").write_bytes(tar.extractfile("x/0.stk").read())
    assert (read_tokens(tmp_path / "0.stk").tokens == expected.tokens).all()
    (tmp_path / "cut.tar").write_bytes((tmp_path / "in.tar").read_bytes()[:9_000])
    code, _, err = run(capsys, "encode", tmp_path / "cut.tar", tmp_path / "cut_out.tar", "--model", model)
    assert code == 1 and "not a tar file that can be read to its end" in err
    assert not (tmp_path / "cut_out.tar").exists()


def test_gain_comes_back(codec, tmp_path):
    source = write_sound(tmp_path / "in.wav", scale=0.01)
    plain, levelled = encode_file(codec, source), encode_file(codec, source, EncodeOptions(normalize=True))
    peak = float(abs(soundfile.read(source)[0]).max())
    assert plain.gain == 1 and levelled.gain == pytest.approx(2 * peak, rel=1e-3)
    decode_file(codec, levelled, tmp_path / "a.wav", Sampling(steps=2))
    wave_levelled = codec.decode(torch.from_numpy(levelled.tokens)[None], steps=2)[0, 0, : levelled.samples]
    found = soundfile.read(tmp_path / "a.wav")[0]
    assert abs(found - levelled.gain * wave_levelled.numpy()).max() < 1e-4


def test_damaged_files(model, tmp_path, capsys, codec):
    tokens = encode_file(codec, write_sound(tmp_path / "in.wav", 16_000 * 25))  # a whole block and a part
    path = write_tokens(tmp_path / "a.stk", tokens)
    path.write_bytes(path.read_bytes()[:-200])
    code, _, err = run(capsys, "decode", path, tmp_path / "a.wav", "--model", model)
    assert code == 1 and "--recover" in err and not (tmp_path / "a.wav").exists()
    code, out, _ = run(
        capsys, "decode", path, tmp_path / "a.wav", "--model", model, "--recover", "--steps", 1, "--json"
    )
    assert code == 0
    assert json.loads(out)["files"][0]["seconds"] == pytest.approx(25 - 100 / 25, abs=0.2)


def test_foreign_tokens_are_refused(codec, tmp_path):
    from dataclasses import replace

    tokens = encode_file(codec, write_sound(tmp_path / "in.wav"))
    check_fits(codec, tokens)
    for change, message in (
        ({"token_rate": 100}, "run at 100 per second, this model at 50"),
        ({"semantic_vocab": 512}, "vocabularies of 512 and 256"),
        ({"acoustic_vocab": 8192}, "of 256 and 8192"),
        ({"model": tokens.model ^ 1}, "other codebooks"),
    ):
        with pytest.raises(ValueError, match=message):
            check_fits(codec, replace(tokens, **change))
    check_fits(codec, replace(tokens, model=tokens.model ^ 1), force=True)


def test_messages_name_the_file(model, tmp_path, capsys):
    (tmp_path / "empty.wav").write_bytes(b"")
    silent = write_sound(tmp_path / "none.wav", samples=0)
    for path, message in (
        (tmp_path / "empty.wav", "not a sound"),
        (silent, "no samples"),
        (tmp_path / "gone.wav", "no such"),
    ):
        code, _, err = run(capsys, "encode", path, tmp_path / "x.stk", "--model", model)
        (line,) = (line for line in err.splitlines() if line.startswith("error:"))
        assert code == 1 and path.name in line and message in line
    assert main(["codec"]) == 2 and main(["codec", "encode"]) == 2


def test_a_model_describes_itself(model, capsys):
    code, out, _ = run(capsys, "info", model, "--json")
    info = json.loads(out)
    assert code == 0 and info["kbps"] == {"64": 0.35, "128": 0.375, "256": 0.4}
