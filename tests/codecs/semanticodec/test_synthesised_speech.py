"""Sound that nobody here made: what a speech synthesiser of the distribution says."""

import shutil
import subprocess

import pytest
import soundfile

from mm.codecs.semanticodec import SemantiCodec, tiny
from mm.codecs.semanticodec.files import decode_file, encode_file


@pytest.fixture
def speech(tmp_path):
    program = next((name for name in ("espeak-ng", "espeak") if shutil.which(name)), None)
    if program is None:
        pytest.skip("no speech synthesiser: install espeak-ng from the distribution's packages")
    path = tmp_path / "speech.wav"
    subprocess.run([program, "-w", str(path), "the codec says what it was told"], check=True, timeout=30)
    return path


def test_it_round_trips(speech, tmp_path):
    codec, recorded = SemantiCodec(tiny()).eval(), soundfile.info(speech)
    tokens = encode_file(codec, speech)
    assert tokens.source_rate == recorded.samplerate
    assert tokens.samples == -(-recorded.frames * 16_000 // recorded.samplerate)
    assert len({tuple(pair) for pair in tokens.tokens.tolist()}) > 5, "speech must not be one token over and over"
    decode_file(codec, tokens, tmp_path / "back.wav")
    assert soundfile.info(tmp_path / "back.wav").frames == tokens.samples
