"""Sound that nobody here made: what a speech synthesiser of the distribution says, through the shipped codec."""

import shutil
import subprocess

import numpy as np
import pytest
import soundfile
import torch

import mm
from mm.codecs.semanticodec.evaluate import retrieval
from mm.codecs.semanticodec.files import decode_file, encode_file
from mm.codecs.semanticodec.mel import LogMel
from mm.codecs.semanticodec.probe import averaged, probe_accuracy
from mm.codecs.semanticodec.round_trip import read_wave

SEGMENT = 20_480
"""Samples of one segment, 1.28 s."""
SENTENCES = (
    "the codec says what it was told and nothing that it was not told",
    "seven small boats sailed slowly across the silver bay at dawn",
    "please put the old green kettle back upon the kitchen stove",
    "nobody knows how many people walked along this narrow road",
    "her brother wrote nine long letters from a town by the sea",
    "we found the open window only after the rain had stopped",
    "every autumn the children gather apples behind the barn",
    "a quiet voice told them where the hidden bridge began",
)


@pytest.fixture(scope="module")
def codec():
    return mm.load("semanticodec_tiny")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    program = next((name for name in ("espeak-ng", "espeak") if shutil.which(name)), None)
    if program is None:
        pytest.skip("no speech synthesiser: install espeak-ng from the distribution's packages")
    folder, found = tmp_path_factory.mktemp("speech"), []
    for number, sentence in enumerate(SENTENCES):
        found.append(folder / f"{number}.wav")
        subprocess.run([program, "-w", str(found[-1]), sentence], check=True, timeout=30)
    return found


@pytest.fixture(scope="module")
def speech(recordings):
    """The first two segments of every sentence, (16, S)."""
    return torch.cat([read_wave(path)[: 2 * SEGMENT].reshape(2, SEGMENT) for path in recordings])


def test_a_file_round_trips(codec, recordings, tmp_path):
    recorded = soundfile.info(recordings[0])
    tokens = encode_file(codec, recordings[0])
    assert tokens.source_rate == recorded.samplerate
    assert tokens.samples == -(-recorded.frames * 16_000 // recorded.samplerate)
    assert len({tuple(pair) for pair in tokens.tokens.tolist()}) > 20, "speech is not one token over and over"
    decode_file(codec, tokens, tmp_path / "back.wav")
    assert soundfile.info(tmp_path / "back.wav").frames == tokens.samples


def test_decoded_speech_is_nearest_to_what_was_said(codec, speech):
    decoded, mel = codec.decode(codec.encode(speech, 16_000), steps=6)[:, 0], LogMel()
    assert retrieval(mel(decoded), mel(speech)) >= 0.8
    assert retrieval(mel(decoded.roll(1, 0)), mel(speech)) <= 0.2


def test_tokens_tell_speech_tones_and_noise_apart(codec, speech):
    """A probe of half of each names the other half; sentences of one half do not occur in the other."""
    waves, labels = torch.cat([speech, tones(), noises()]), np.arange(48) // 16
    semantic = codec.encode(waves, 16_000)
    features = averaged(codec.embed(semantic)[..., codec.config.encoder.token_width :], semantic)
    half = np.arange(48) % 16 < 8
    found = probe_accuracy((features[half], labels[half]), (features[~half], labels[~half]))
    shuffled = np.random.default_rng(0).permutation(labels[half])
    assert found >= 0.9
    assert probe_accuracy((features[half], shuffled), (features[~half], labels[~half])) < 0.7


def tones() -> torch.Tensor:
    """Sixteen pure tones of other pitches and levels, (16, S)."""
    pitch = 150 * 2 ** (torch.arange(16) * 5 % 16 / 4)
    return (0.1 + 0.02 * torch.arange(16))[:, None] * torch.sin(
        2 * torch.pi * pitch[:, None] * torch.arange(SEGMENT) / 16_000
    )


def noises() -> torch.Tensor:
    """Sixteen noises of other levels and colours, (16, S)."""
    white = torch.randn(16, SEGMENT, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool1d(white[::2, None], 3, stride=1, padding=1)[:, 0]
    return torch.stack([white[1::2], smooth], 1).flatten(0, 1) * torch.linspace(0.02, 0.2, 16)[:, None]
