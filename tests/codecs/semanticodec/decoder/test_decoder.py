"""The whole decoder: reference end to end, lengths, batches, streams, seeds, seams."""

from __future__ import annotations

import pytest
import torch

from mm.codecs.semanticodec.decoder import Sampling
from mm.codecs.semanticodec.windows import cut_windows, overlap_add, window_ranges

DETERMINISTIC = {"steps": 2, "eta": 0.0}


def features_of(count, seed=0, rows=1):
    return torch.randn(rows, count, 12, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def decoded(parity, reference):
    """Latents, mel and windows of the reference's tokens."""
    fixture, tables = parity("e2e"), parity("encoder_k1")
    tokens = fixture["decode.tokens"]
    acoustic = tables["weights.quantizer._codebook.embed"][0][tokens[..., 1]]
    features = torch.cat([acoustic, tables["semantic_codebook"][tokens[..., 0]]], dim=-1)
    windows = cut_windows(features, window_ranges(tokens.shape[1], 512, 32), 512)[0]
    start = fixture["decode.x_T"]
    starts = torch.cat([start, start.flip(2)])
    with torch.no_grad():
        latents = reference.sample(windows, lambda: starts, Sampling(steps=5, guidance=2.0, eta=0.0))
        mel = reference.mel(latents)
        waves = reference.wave(mel, trim=False)
    return fixture, windows, latents, mel, waves


@pytest.mark.parametrize("index", [0, 1])
def test_windows_equal_the_reference_end_to_end(index, decoded, close):
    fixture, windows, latents, mel, waves = decoded
    rows = fixture["expected.decode.features.row_index"]
    close(windows[index, rows], fixture[f"expected.decode.features.window{index}"])
    close(latents[index : index + 1, :, ::4], fixture[f"expected.decode.latent.window{index}"], 1e-3)
    close(mel[index, 0, ::16], fixture[f"expected.decode.mel.window{index}"], 1e-3)
    close(waves[index, 0, :1600], fixture[f"expected.decode.window_wave_head.window{index}"], 1e-3)


def test_the_joined_signal_equals_the_reference(decoded, reference, close):
    fixture, *_, waves = decoded
    length = int(fixture["expected.decode.length"])
    joined = overlap_add([wave[None] for wave in waves], reference.overlap_samples)[0, 0, :length]
    assert reference.samples_per_token * fixture["decode.tokens"].shape[1] == length == len(joined)
    for span in ("0_1600", "153232_155632", "162600_165000"):
        first, last = map(int, span.split("_"))
        close(joined[first:last], fixture[f"expected.decode.wave.{span}"], 1e-3)
    close(joined[::32], fixture["expected.decode.wave.every_32nd"], 1e-3)
    close(joined[-1600:], fixture["expected.decode.wave.last_1600"], 1e-3)


@pytest.mark.parametrize("count", [1, 3, 8, 9, 10, 14, 23])
def test_every_token_gives_its_samples(count, small):
    assert small.samples_per_token == 640
    assert small(features_of(count), **DETERMINISTIC).shape == (1, 1, 640 * count)
    assert small(features_of(count), official_joins=True, **DETERMINISTIC).shape == (1, 1, 640 * count)


def test_a_stream_equals_the_whole_and_needs_only_its_windows(small):
    features = features_of(40)
    whole = small(features, windows_at_once=64, **DETERMINISTIC)
    rows = []
    small.vocoder.register_forward_pre_hook(lambda _m, args: rows.append(len(args[0])))
    stream = small.stream(features, Sampling(**DETERMINISTIC), windows_at_once=2)
    first = next(stream)
    assert rows == [2], "the first stretch must come after the first two windows"
    streamed = torch.cat([first, *stream], dim=-1)
    assert max(rows) == 2 and sum(rows) == len(window_ranges(40, 8, 2))
    torch.testing.assert_close(streamed, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_row_alone_equals_the_row_in_a_padded_batch(eta, small):
    short, long = features_of(5), features_of(20, seed=1)
    padded = torch.cat([short, torch.full((1, 15, 12), 9.0)], dim=1)
    settings = {"steps": 4, "eta": eta, "seed": 4}
    together = small(torch.cat([padded, long]), lengths=torch.tensor([5, 20]), **settings)
    torch.testing.assert_close(together[1:], small(long, **settings), rtol=1e-4, atol=1e-5)
    alone = small(short, **settings)
    torch.testing.assert_close(together[:1, :, : alone.shape[-1]], alone, rtol=1e-4, atol=1e-5)


def test_editing_the_last_window_leaves_earlier_sound_alone(small):
    features = features_of(26)
    edited = features.clone()
    edited[:, 22:] += 1
    first, second = (small(x, windows_at_once=1, **DETERMINISTIC) for x in (features, edited))
    start = window_ranges(26, 8, 2)[-1][0] * small.samples_per_token
    assert torch.equal(first[..., :start], second[..., :start])
    assert not torch.equal(first[..., start:], second[..., start:])


def test_seeds_repeat_and_differ_and_samplers_differ(small):
    features = features_of(8)
    first = small(features, **DETERMINISTIC)
    assert torch.equal(first, small(features, **DETERMINISTIC))
    assert not torch.allclose(first, small(features, seed=1, **DETERMINISTIC))
    assert not torch.equal(first, small(features, steps=4, sampler="dpm++"))


def test_neighbouring_windows_start_from_the_same_noise_where_they_overlap(small):
    from mm.codecs.semanticodec.noise import WindowNoise

    noise = WindowNoise(0, [0, 1, 2], small.config.latent_shape, small.latent_overlap)
    for _ in range(2):
        drawn = noise()
        overlap = small.latent_overlap
        assert torch.equal(drawn[0, :, -overlap:], drawn[1, :, :overlap])
        assert not torch.equal(drawn[0, :, :overlap], drawn[1, :, :overlap])
    assert abs(float(drawn.std()) - 1) < 0.05


def test_bfloat16_decodes(small):
    full = small(features_of(8), **DETERMINISTIC)
    half = small.bfloat16()(features_of(8).bfloat16(), **DETERMINISTIC)
    assert half.dtype == torch.bfloat16 and half.isfinite().all()
    assert (half.float() - full).square().mean().sqrt() < 0.1 * full.std()


def test_wrong_requests_are_refused(small):
    with pytest.raises(ValueError, match=r"\(batch, tokens, 12\), got \(1, 8, 11\)"):
        small(torch.zeros(1, 8, 11))
    with pytest.raises(ValueError, match="nothing to decode"):
        small(torch.zeros(1, 0, 12))
    with pytest.raises(ValueError, match="sampler must be"):
        small(features_of(8), sampler="euler")
    with pytest.raises(ValueError, match="no effect"):
        small(features_of(8), sampler="dpm++", eta=0.5)
    with pytest.raises(ValueError, match="at least 1"):
        small(features_of(8), windows_at_once=0)
