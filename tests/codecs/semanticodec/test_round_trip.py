"""Short recordings there and back, and the pictures of them."""

import numpy as np
import pytest
import soundfile
import torch

from mm.codecs.semanticodec import Sampling, SemantiCodec, tiny
from mm.codecs.semanticodec.container import HEADER_SIZE
from mm.codecs.semanticodec.round_trip import packed, read_wave, round_trip, unpacked
from mm.codecs.semanticodec.show import mel_figure, token_strip


@pytest.fixture(scope="module")
def codec():
    return SemantiCodec(tiny()).eval()


@pytest.fixture(scope="module")
def wave():
    return 0.1 * torch.randn(16_123, generator=torch.Generator().manual_seed(0))


def test_the_file_alone_gives_the_sound(codec, wave):
    trip = round_trip(codec, wave, Sampling(steps=2))
    assert trip.decoded.shape == trip.source.shape and trip.seconds == 16_123 / 16_000
    assert len(trip.tokens) == 28 and len(trip.file) == HEADER_SIZE + 28 * 2 + 2
    assert torch.equal(unpacked(codec, trip.file, Sampling(steps=2)), trip.decoded)
    whole = codec.decode(trip.tokens[None], steps=2)[0, 0, :16_123]
    torch.testing.assert_close(trip.decoded, whole)
    with pytest.raises(ValueError, match="other codebooks"):
        unpacked(SemantiCodec(tiny(), seed=1).eval(), trip.file)


def test_files_become_one_channel_at_16_khz(tmp_path):
    tone = np.sin(2 * np.pi * 440 * np.arange(44_100) / 44_100)
    soundfile.write(tmp_path / "a.wav", np.stack([tone, 0 * tone], 1), 44_100, subtype="FLOAT")
    wave = read_wave(tmp_path / "a.wav")
    expected = 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(16_000) / 16_000)
    torch.testing.assert_close(wave[500:-500], expected[500:-500], atol=2e-3, rtol=0)


def test_what_cannot_be_shown_is_refused_by_name(tmp_path):
    soundfile.write(tmp_path / "long.wav", np.zeros(48_000), 16_000)
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16_000)
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan, np.float32), 16_000, subtype="FLOAT")
    (tmp_path / "text.wav").write_text("no sound at all")
    for name, message in (
        ("long.wav", r"long\.wav: longer than 2 s; `mm codec encode`"),
        ("none.wav", r"none\.wav: there are no samples"),
        ("nan.wav", r"nan\.wav: .*not finite"),
        ("text.wav", r"text\.wav: "),
    ):
        with pytest.raises(ValueError, match=message):
            read_wave(tmp_path / name, longest_s=2)


def test_the_strip_has_a_colour_per_token_and_low_sounds_at_the_bottom(codec):
    tokens = torch.stack([torch.arange(8), 200 + torch.arange(8)], 1)  # two columns of four
    strip = token_strip(codec, torch.cat([tokens, tokens[:1]]))  # the rest of a column is left out
    assert strip.shape == (9, 2, 3) and (strip[4] == 255).all()
    repeated = token_strip(codec, torch.tensor([[5, 9], [1, 1], [2, 2], [3, 3], [5, 9], [0, 0], [4, 4], [6, 6]]))
    assert (repeated[3] == repeated[3, :1]).all(), "the first token of both columns is the same and lies lowest"
    assert len(np.unique(strip.reshape(-1, 3), axis=0)) == 17


def test_spectrograms_share_one_scale(codec, wave):
    figure = mel_figure(codec, {"loud": wave, "soft": 0.01 * wave, "third": wave})
    images = [axis.images[0] for axis in figure.axes if axis.images]
    assert len(images) == 3 and len({image.get_clim() for image in images}) == 1
    assert images[0].get_array().mean() > images[1].get_array().mean()


def test_packing_does_not_look_at_the_decoder(codec, wave):
    assert torch.equal(packed(codec, wave)[0], codec.encode(wave[None], 16_000)[0])
