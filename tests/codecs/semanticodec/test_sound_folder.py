"""Training on own recordings: what is read, what is held out, and a run from the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
import torch

from mm.cli import main
from mm.codecs.semanticodec.config import SAMPLE_RATE
from mm.codecs.semanticodec.fbank import LOOKAHEAD
from mm.codecs.semanticodec.sound_folder import SoundFolder, SoundFolderConfig
from mm.codecs.semanticodec.sounds import DOMAINS
from mm.data.split import Split

RATES = (8_000, 16_000, 22_050, 44_100, 48_000)


@pytest.fixture
def folder(tmp_path):
    """Ten tones, each with a pitch of its own: stereo and mono, five rates, three formats, three domains."""
    for number in range(10):
        rate, seconds = RATES[number % 5], 0.5 + 0.25 * number
        wave = 0.3 * np.sin(2 * np.pi * (200 + 50 * number) * np.arange(int(rate * seconds)) / rate)
        place = tmp_path / "sounds" / (*DOMAINS, ".")[number % 4]
        place.mkdir(parents=True, exist_ok=True)
        ending = ("wav", "flac", "ogg")[number % 3]
        soundfile.write(place / f"{number}.{ending}", np.stack([wave] * (1 + number % 2), 1), rate)
    return tmp_path / "sounds"


def pitch(wave: torch.Tensor) -> float:
    spectrum = np.abs(np.fft.rfft(wave.numpy()))
    return float(np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE)[spectrum.argmax()])


def set_up(folder, **changes) -> SoundFolder:
    data = SoundFolder(SoundFolderConfig(train=str(folder), samples=5_120, **changes))
    data.setup()
    return data


def test_segments_come_from_the_recordings_at_their_pitch_and_domain(folder):
    data, seeds = set_up(folder), Split("train").seeds
    batch, again = data.rows(seeds[:24]), data.rows(seeds[:24])
    assert batch["waves"].shape == (24, 5_120 + LOOKAHEAD)
    assert torch.equal(batch["waves"], again["waves"]) and len(set(batch["labels"].tolist())) > 4
    for wave, domain in zip(batch["waves"], batch["domains"].tolist(), strict=True):
        number = round((pitch(wave) - 200) / 50)
        assert abs(pitch(wave) - 200 - 50 * number) < 4, "a tone keeps its pitch at every rate"
        assert DOMAINS[domain] == (*DOMAINS, "general")[number % 4]


def test_held_out_recordings_are_not_trained_on(folder):
    data = set_up(folder)
    tones = {
        name: {round(pitch(wave) / 50) for wave in data.rows(Split(name).seeds[:48])["waves"]}
        for name in ("train", "validation")
    }
    assert len(tones["validation"]) == 1 and len(tones["train"]) > 6
    assert not tones["train"] & tones["validation"]


def test_short_recordings_end_in_silence(folder, tmp_path):
    (tmp_path / "short").mkdir()
    soundfile.write(tmp_path / "short" / "a.wav", np.full(800, 0.5), SAMPLE_RATE)
    wave = set_up(folder, validation=str(tmp_path / "short")).rows(Split("validation").seeds[:1])["waves"][0]
    assert (wave[:800] > 0.49).all() and not wave[800:].any()


def test_broken_files_are_named_or_left_out(folder):
    (folder / "broken.wav").write_bytes(b"no sound")
    with pytest.raises(ValueError, match=r"broken\.wav.*on_error count"):
        set_up(folder)
    assert len(set_up(folder, on_error="count").rows(Split("train").seeds[:2])["waves"]) == 2


def test_a_run_on_ten_files(folder, tmp_path, monkeypatch, capsys):
    from mm.codecs.semanticodec.codec import SemantiCodec
    from tests.codecs.semanticodec.decoder.test_stages import CONFIG

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    SemantiCodec(CONFIG).save_pretrained("start")
    words = ["fit", "--config", "semanticodec/folder", "--data.config.train", str(folder), "--model.codec", "start"]
    words += ["--data.config.samples", "5120", "--trainer.max_steps", "3", "--trainer.val_check_interval", "2"]
    assert main([*words, "--data.config.batch_size", "2", "--out", "run", "--json"]) == 0
    assert np.isfinite(json.loads(capsys.readouterr().out)["metrics"]["val/v_mse"])
    before, after = (SemantiCodec.from_pretrained(name).state_dict() for name in ("start", "run/model"))
    changed = {key.split(".")[1] for key in before if not torch.equal(before[key], after[key])}
    assert "unet" in changed and "vae" not in changed


@pytest.mark.parametrize(
    ("train", "says"),
    [("", "name a folder"), ("nowhere", "no such folder"), ("empty", "holds no recording"), ("one", "hold one out")],
)
def test_folders_that_do_not_do(train, says, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "one").mkdir()
    soundfile.write(tmp_path / "one" / "a.wav", np.zeros(8000), SAMPLE_RATE)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        SoundFolder(SoundFolderConfig(train=str(tmp_path / train) if train else "")).setup()
