"""Files in and out, resampling in blocks, segments of long recordings, token counts."""

import math
import wave

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from mm.codecs.semanticodec import audio
from mm.codecs.semanticodec.audio import audio_writer, open_audio
from mm.codecs.semanticodec.config import EncoderConfig, paper
from mm.codecs.semanticodec.fbank import FilterBank
from mm.codecs.semanticodec.framing import cut_segments, segment_frames, to_mono
from mm.codecs.semanticodec.lengths import (
    official_segments,
    official_target,
    samples_of,
    segment_count,
    token_count,
)
from mm.codecs.semanticodec.resample import resample, resample_blocks

RATES = {1: 100, 2: 50, 4: 25}


def noise(channels, samples, seed=0):
    return 0.3 * torch.randn(channels, samples, generator=torch.Generator().manual_seed(seed)).clamp(-3, 3)


def read(path):
    with open_audio(path) as source:
        return torch.cat(list(source.blocks), dim=1), source.sample_rate


@pytest.mark.parametrize("stack", RATES)
def test_official_token_counts(tables, stack):
    config = paper(RATES[stack]).encoder
    for row in tables["token_counts"]:
        expected = row[f"k{stack}"]
        assert official_target(row["samples"], config) == expected["target"]
        assert token_count(row["samples"], config, "official") == expected["tokens"]
        assert official_segments(row["samples"], config) == row["segments"]
        assert samples_of(expected["tokens"], config) == 320 * stack * expected["tokens"]


def test_float_target_lengths(parity):
    data = parity("fbank")
    lengths = [41_637, 163_840, 179_200, 6_000, 4_004]
    for stack, rate in RATES.items():
        found = [official_target(length, paper(rate).encoder) for length in lengths]
        assert found == data[f"expected.target_token_len.k{stack}"].tolist()


@pytest.mark.parametrize("rate", RATES.values())
def test_exact_counts_cover_the_input_by_less_than_a_column(rate):
    config = paper(rate).encoder
    for samples in (1, 160, 2559, 2560, 2561, 5120, 163_839, 163_840, 163_841, 1_000_000):
        count = token_count(samples, config)
        assert count % config.column_tokens == 0
        assert 0 <= samples_of(count, config) - samples < config.column_samples


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="no samples"):
        token_count(0, EncoderConfig())


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 192_000])
@pytest.mark.parametrize("block", [100, 4_097])
def test_resampling_in_blocks_equals_the_whole(rate, block):
    whole = noise(2, 30_011)
    expected = torchaudio.functional.resample(whole, rate, 16_000)
    found = torch.cat(list(resample_blocks(whole.split(block, dim=1), rate)), dim=1)
    assert found.shape == expected.shape == (2, math.ceil(30_011 * 16_000 / rate))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_published_resampling(parity):
    data = parity("fbank")
    expected = data["expected.other_rate.resampled"]
    torch.testing.assert_close(resample(data["wave.other_rate"], 44_100), expected, atol=5e-5, rtol=0)


def test_an_odd_rate_keeps_a_tone():
    time = torch.arange(44_101, dtype=torch.float64) / 44_101
    found = resample((440 * 2 * math.pi * time).sin().float()[None], 44_101)[0]
    expected = (440 * 2 * math.pi * torch.arange(len(found), dtype=torch.float64) / 16_000).sin().float()
    assert abs(len(found) - 16_000) <= 1
    assert (found - expected)[200:-200].abs().max() < 1e-3


@pytest.mark.parametrize("rate", [0, 44_100.5, 10**7])
def test_impossible_rates_are_refused(rate):
    with pytest.raises(ValueError, match="sample_rate"):
        resample(noise(1, 100), rate)


@pytest.mark.parametrize("samples", [1, 20_000, 20_480, 20_481, 20_719, 20_720, 40_960, 70_000])
@pytest.mark.parametrize("mode", ["exact", "official"])
def test_segments_equal_frames_of_the_whole_padded_file(samples, mode):
    """1.28-s segments; the released code pads to the next multiple and frames everything at once."""
    from mm.codecs.semanticodec.config import tiny

    config, bank = tiny().encoder, FilterBank()
    mono = noise(1, samples)[0]
    found = segment_frames(list(cut_segments(mono.split(7_001), config, mode)), bank)
    size = config.segment_samples
    official = samples // size + 1
    whole = bank(torch.nn.functional.pad(mono, (0, official * size - samples))[None])[0]
    whole = torch.nn.functional.pad(whole, (0, 0, 0, 2), value=4.2677393 / 9.1379948).unflatten(0, (official, 128))
    assert len(found) == segment_count(samples, config, mode)
    torch.testing.assert_close(found, whole[: len(found)], atol=1e-6, rtol=0)


def test_bad_samples_are_counted():
    bad = noise(2, 100)
    bad[0, 5], bad[1, 7] = float("nan"), float("inf")
    with pytest.raises(ValueError, match="2 samples that are not finite"):
        to_mono(bad)
    assert torch.equal(to_mono(torch.stack([torch.ones(4), torch.zeros(4)])), torch.full((4,), 0.5))
    assert torch.equal(to_mono(torch.stack([torch.ones(4), torch.zeros(4)]), "first"), torch.ones(4))


@pytest.mark.parametrize("suffix, tolerance", [("wav", 1e-4), ("flac", 1e-4), ("ogg", 2.0)])
@pytest.mark.parametrize("channels, rate", [(1, 8_000), (2, 44_100), (6, 192_000)])
def test_files_of_soundfile(tmp_path, suffix, channels, rate, tolerance):
    if suffix == "flac" and rate > 48_000 and channels == 6:
        rate = 96_000
    expected = noise(channels, 3_000)
    soundfile.write(tmp_path / f"a.{suffix}", expected.T.numpy(), rate)
    found, found_rate = read(tmp_path / f"a.{suffix}")
    assert found_rate == rate and found.shape == expected.shape
    assert (found - expected).abs().max() < tolerance


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_wav_without_any_library(tmp_path, width, monkeypatch):
    def missing(module, **_):
        raise ImportError(module)

    path = tmp_path / "a.wav"
    subtype = {1: "PCM_U8", 2: "PCM_16", 3: "PCM_24", 4: "PCM_32"}[width]
    expected = noise(2, 500)
    soundfile.write(path, expected.T.numpy(), 22_050, subtype=subtype)
    monkeypatch.setattr(audio, "require", missing)
    found, rate = read(path)
    assert rate == 22_050
    torch.testing.assert_close(found, expected, atol=2.0 ** (2 - 8 * width) + 1e-6, rtol=0)


def write_video(path, sound=True):
    import av

    tone = (np.sin(np.arange(48_000) * 2 * np.pi * 440 / 48_000) * 20_000).astype(np.int16)
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        track = container.add_stream("aac", rate=48_000, layout="mono") if sound else None
        for index in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 * index, np.uint8), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if track:
            for start in range(0, 48_000, 1024):
                frame = av.AudioFrame.from_ndarray(tone[None, start : start + 1024], format="s16", layout="mono")
                frame.sample_rate, frame.pts = 48_000, start
                container.mux(track.encode(frame))
            container.mux(track.encode())
    return path


def test_the_sound_of_a_video(tmp_path):
    found, rate = read(write_video(tmp_path / "a.mp4"))
    assert rate == 48_000 and abs(found.shape[1] - 48_000) < 3_000
    spectrum = torch.fft.rfft(found[0, 10_000:34_000]).abs()
    assert spectrum.argmax() == 440 // 2
    with pytest.raises(ValueError, match="no sound track"):
        read(write_video(tmp_path / "b.mp4", sound=False))


def test_what_is_no_sound_is_named(tmp_path):
    (tmp_path / "a.wav").write_text("this is no sound")
    with pytest.raises(ValueError, match=r"a\.wav: not a sound or video file"):
        read(tmp_path / "a.wav")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read(tmp_path / "b.wav")


def test_writing_clips_and_leaves_nothing_behind_on_failure(tmp_path):
    with audio_writer(tmp_path / "a.wav") as write:
        write(torch.tensor([0.0, 0.5, 2.0, -2.0]))
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getframerate(), file.getnchannels()) == (16_000, 1)
        assert np.frombuffer(file.readframes(9), np.int16).tolist() == [0, 16384, 32767, -32767]
    with pytest.raises(RuntimeError):
        with audio_writer(tmp_path / "b.wav") as write:
            write(torch.zeros(5))
            raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]
