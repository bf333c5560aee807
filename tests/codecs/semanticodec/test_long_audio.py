"""Ten minutes through the decoder's windows, and sound that nobody here made: a speech synthesiser's."""

import math
import shutil
import subprocess

import pytest
import soundfile
import torch

from mm.codecs.semanticodec import SemantiCodec, tiny
from mm.codecs.semanticodec.audio import open_audio
from mm.codecs.semanticodec.files import decode_file, encode_file
from mm.codecs.semanticodec.windows import window_ranges

MINUTES = 10
TONE_HZ = 437.0


@pytest.fixture(scope="module")
def codec():
    return SemantiCodec(tiny()).eval()


def tone(samples, first=0):
    place = torch.arange(first, first + samples, dtype=torch.float64)
    return (0.5 * torch.sin(2 * math.pi * TONE_HZ * place / 16_000)).float()


class PerfectWindows:
    """Stands for the networks: window i sounds exactly like its stretch of a pure tone, with `surplus` more samples."""

    def __init__(self, codec, tokens, surplus=0):
        config = codec.config.decoder
        self.starts = [first for first, _ in window_ranges(tokens, config.window_tokens, config.overlap_tokens)]
        self.size, self.surplus = config.window_samples, surplus

    def __call__(self, features, sampling, at_once, *, trim):
        for start in self.starts:
            yield tone(self.size + (0 if trim else self.surplus), 640 * start)[None, None]


def clicks_db(wave, places, around=64):
    """Energy of the second difference near the joins, relative to that of the tone itself, in dB.

    A pure tone of frequency w has the second difference 2 (1 - cos w) times itself; what is left over is a click.
    """
    factor = 2 * (math.cos(2 * math.pi * TONE_HZ / 16_000) - 1)
    residue = wave[2:] - 2 * wave[1:-1] + wave[:-2] - factor * wave[1:-1]
    worst = max(float(residue[max(place - around, 0) : place + around].abs().max()) for place in places)
    return 20 * math.log10(max(worst, 1e-12) / float(wave.abs().max()))


def decoded_tone(codec, monkeypatch, *, official=False, surplus=0):
    """Ten minutes of a pure tone through the joins, and where windows begin and cross-fades end."""
    count = MINUTES * 60 * 25
    windows = PerfectWindows(codec, count, surplus)
    monkeypatch.setattr(codec.decoder, "_windows", windows)
    wave = codec.decode(torch.zeros(1, count, 2, dtype=torch.int64), official_joins=official)[0, 0].double()
    assert len(wave) == count * 640
    overlap = codec.decoder.overlap_samples
    return wave, [place for start in windows.starts[1:] for place in (start * 640, start * 640 + overlap)]


def test_ten_minutes_have_no_seams(codec, monkeypatch):
    wave, places = decoded_tone(codec, monkeypatch)
    assert len(places) > 1000 and clicks_db(wave, places) < -60
    assert (wave - tone(len(wave)).double()).abs().max() < 1e-6, "time must not drift either"


def test_the_detector_hears_a_hard_join_and_the_released_joins_drift(codec, monkeypatch):
    hard = torch.cat([tone(9_000), tone(9_000, first=9_032)]).double()
    assert clicks_db(hard, [9_000]) > -60
    wave, _ = decoded_tone(codec, monkeypatch, official=True, surplus=32)
    assert (wave - tone(len(wave)).double()).abs().max() > 0.1


def synthesiser():
    for name in ("espeak-ng", "espeak"):
        if shutil.which(name):
            return name
    pytest.skip("no speech synthesiser: install espeak-ng from the distribution's packages")


def test_a_speech_synthesiser_round_trips(codec, tmp_path):
    path = tmp_path / "speech.wav"
    subprocess.run([synthesiser(), "-w", str(path), "the codec says what it was told"], check=True, timeout=30)
    with open_audio(path) as source:
        samples, rate = sum(block.shape[1] for block in source.blocks), source.sample_rate
    tokens = encode_file(codec, path)
    assert tokens.source_rate == rate and tokens.samples == -(-samples * 16_000 // rate)
    assert len({tuple(pair) for pair in tokens.tokens.tolist()}) > 5, "speech must not be one token over and over"
    decode_file(codec, tokens, tmp_path / "back.wav")
    assert soundfile.info(tmp_path / "back.wav").frames == tokens.samples
