"""Both mel front ends against the published numbers, torchaudio and transformers; padding detection."""

import math

import numpy as np
import pytest
import torch
import torchaudio
from transformers import ASTFeatureExtractor

from mm.codecs.semanticodec.fbank import (
    LOOKAHEAD,
    MEAN,
    PAD_VALUE,
    SILENCE_VALUE,
    SPREAD,
    FilterBank,
    frames_kept,
    mel_filters,
)
from mm.codecs.semanticodec.mel import LogMel

TOLERANCE = 5e-5
SEGMENT = 163_840


def segments(wave, count):
    """Zero-padded segments of 1024 frames, (count, 1024, 128), as the published code frames them."""
    padded = torch.nn.functional.pad(wave, (0, count * SEGMENT - wave.shape[-1]))
    frames = FilterBank()(padded)[0]
    frames = torch.nn.functional.pad(frames, (0, 0, 0, count * 1024 - len(frames)), value=PAD_VALUE)
    return frames.unflatten(0, (count, 1024))


def kaldi(wave):
    frames = torchaudio.compliance.kaldi.fbank(
        wave,
        htk_compat=True,
        sample_frequency=16_000,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
        frame_shift=10,
    )
    return (frames - MEAN) / (2 * SPREAD)


def test_constants(parity):
    data = parity("fbank")
    assert pytest.approx(float(data["expected.pad_value"]), abs=TOLERANCE) == PAD_VALUE
    assert pytest.approx(float(data["expected.silence_value"]), abs=TOLERANCE) == SILENCE_VALUE
    assert pytest.approx(0.46703, abs=1e-5) == PAD_VALUE and pytest.approx(-1.27760, abs=1e-5) == SILENCE_VALUE


def test_mel_filters(parity):
    data = parity("fbank")
    filters = mel_filters()
    torch.testing.assert_close(
        filters[data["expected.mel_bank.row_index"], :256], data["expected.mel_bank.rows"], atol=TOLERANCE, rtol=0
    )
    assert not filters[:, 256].any()


def test_main_wave(parity):
    data = parity("fbank")
    (frames,) = segments(data["wave.main"], 1)
    torch.testing.assert_close(frames[:264], data["expected.main.head"], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(frames[1016:], data["expected.main.tail"], atol=TOLERANCE, rtol=0)
    assert (frames[264:1022] - data["expected.silence_value"]).abs().max() < TOLERANCE


@pytest.mark.parametrize("repeats", [64, 70])
def test_tiles_over_two_segments(parity, repeats):
    data = parity("fbank")
    frames = segments(data["wave.tile_pattern"].repeat(1, repeats), 2).flatten(0, 1)
    expected = data[f"expected.tile{repeats}.rows"]
    torch.testing.assert_close(frames[data["expected.tile.row_index"]], expected, atol=TOLERANCE, rtol=0)


def test_stereo_and_another_rate(parity):
    data = parity("fbank")
    (frames,) = segments(data["wave.stereo"][:1], 1)
    torch.testing.assert_close(frames[:42], data["expected.stereo.head"], atol=TOLERANCE, rtol=0)
    (frames,) = segments(data["expected.other_rate.resampled"], 1)
    torch.testing.assert_close(frames[:32], data["expected.other_rate.head"], atol=TOLERANCE, rtol=0)


def test_padding_detection(parity):
    data = parity("fbank")
    pattern = data["wave.tile_pattern"]
    waves = {
        "main": (data["wave.main"], 1),
        "tile64": (pattern.repeat(1, 64), 2),
        "tile70": (pattern.repeat(1, 70), 2),
        "tile64_plus_100_samples": (torch.cat([pattern.repeat(1, 64), torch.full((1, 100), 0.25)], 1), 2),
        "all_zero_20000": (torch.zeros(1, 20_000), 1),
        "stereo": (data["wave.stereo"][:1], 1),
    }
    for name, (wave, count) in waves.items():
        assert torch.equal(frames_kept(segments(wave, count)), data[f"expected.frames_kept.{name}"]), name


def test_a_batch_equals_torchaudio_item_by_item():
    waves = 0.3 * torch.randn(3, 30_000, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([kaldi(wave[None]) for wave in waves])
    torch.testing.assert_close(FilterBank()(waves), expected, atol=1e-4, rtol=0)


def test_transformers_front_end_agrees():
    wave = 0.3 * torch.randn(1, 50_000, generator=torch.Generator().manual_seed(1))
    found = FilterBank()(wave)[0]
    extractor = ASTFeatureExtractor(max_length=1024, num_mel_bins=128)
    expected = extractor(np.asarray(wave[0]), sampling_rate=16_000, return_tensors="pt")["input_values"][0]
    torch.testing.assert_close(found, expected[: len(found)], atol=2e-4, rtol=0)


def test_frames_of_a_piece_with_lookahead_equal_those_of_the_whole():
    wave = torch.randn(1, 3 * 3200, generator=torch.Generator().manual_seed(2))
    whole = FilterBank()(wave)
    piece = FilterBank()(wave[:, 3200 : 6400 + LOOKAHEAD])
    assert torch.equal(piece, whole[:, 20:40])


def test_decoder_front_end_length_and_filters():
    mel = LogMel()
    expected = torchaudio.functional.melscale_fbanks(513, 0.0, 8000.0, 64, 16_000, "slaney", "slaney")
    assert torch.equal(mel.filters, expected)
    assert mel(torch.zeros(1, SEGMENT)).shape == (1, 1024, 64)
    assert (mel(torch.zeros(1, 16_000)) - math.log(1e-5)).abs().max() < 1e-6


def test_decoder_front_end_equals_torchaudio():
    wave = torch.randn(2, 16_000, generator=torch.Generator().manual_seed(3))
    transform = torchaudio.transforms.MelSpectrogram(
        16_000,
        n_fft=1024,
        win_length=1024,
        hop_length=160,
        f_min=0,
        f_max=8000,
        n_mels=64,
        power=1.0,
        center=False,
        norm="slaney",
        mel_scale="slaney",
    )
    expected = transform(torch.nn.functional.pad(wave[:, None], (432, 432), mode="reflect"))[:, 0]
    expected = expected.clamp(min=1e-5).log().transpose(1, 2)
    torch.testing.assert_close(LogMel()(wave), expected, atol=1e-5, rtol=1e-5)
