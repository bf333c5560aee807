"""The Audio tab as a function, through the client, and in a browser."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mm.app.tabs.audio import LONGEST_S, PIXELS, audio, examples

MODEL = "semanticodec_tiny"


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> list[str]:
    return [path for (path,) in examples(tmp_path_factory.mktemp("audio"))]


def test_a_sound_comes_back_with_its_tokens_and_their_size(sounds):
    decoded, table, strip, figure, file = audio(sounds[0], 4, 2.0, MODEL)
    source, found = soundfile.read(sounds[0])[0], soundfile.read(decoded)
    assert found[1] == 16_000 and found[0].shape == source.shape
    values = re.findall(r'<td class="number">([^<]*)</td>', table)
    assert values[:4] == ["3", "76", "400", str(Path(file).stat().st_size)]
    assert strip.shape == (9 * PIXELS, 19 * PIXELS, 3)
    assert sum(bool(axis.images) for axis in figure.axes) == 2
    assert Path(file).suffix == ".stk"


def test_the_sound_belongs_to_its_tokens(sounds):
    """The mel spectrogram of a decoded sound is nearer to that of its own source than to the others."""
    from mm.codecs.semanticodec.mel import LogMel
    from mm.codecs.semanticodec.round_trip import read_wave

    mels = [LogMel()(read_wave(path)[None]) for path in sounds]
    for number, path in enumerate(sounds):
        found = LogMel()(read_wave(audio(path, 6, 2.0, MODEL)[0])[None])
        assert min(range(len(mels)), key=lambda other: float((found - mels[other]).abs().mean())) == number


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sound": None}, "give a sound"),
        ({"sound": "long"}, rf"^long\.wav: longer than {LONGEST_S:g} s"),
        ({"model": "lavi_tiny"}, "a LaviModel does not code sound"),
    ],
)
def test_wrong_input_is_a_sentence(sounds, tmp_path, change, says):
    soundfile.write(tmp_path / "long.wav", np.zeros(int(16_000 * LONGEST_S) + 1), 16_000)
    change = {"sound": str(tmp_path / "long.wav")} if change.get("sound") == "long" else change
    with pytest.raises(ValueError, match=says):
        audio(**({"sound": sounds[0], "steps": 2, "guidance": 1.0, "model": MODEL} | change))


def test_client(client, sounds, broken):
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    decoded, table, *_ = client.predict(handle_file(sounds[1]), 2, 1.0, MODEL, api_name="/audio")
    assert "bit/s" in table and soundfile.info(decoded).frames == 48_000
    wrong = broken.rename(broken.with_suffix(".wav"))
    with pytest.raises(AppError, match=r"^broken\.wav: "):
        client.predict(handle_file(wrong), 2, 1.0, MODEL, api_name="/audio")


def test_browser(browser, broken):
    browser.tab("Audio")
    browser.click("audio_run")
    browser.until(lambda: "token pairs" in browser.text("#audio_result"), "sizes")
    browser.until(lambda: browser.find("#audio_tokens img"), "token strip")
    browser.shot("audio")
    browser.upload("audio_sound", broken.rename(broken.with_suffix(".wav")))
    browser.click("audio_run")
    assert "broken.wav" in browser.toast()
