"""The public class: any input, batches, streams, locality, decoding alone and in batches, bad input."""

import itertools

import numpy as np
import pytest
import torch

import mm
from mm.codecs import SemantiCodec
from mm.codecs.semanticodec.config import tiny
from mm.codecs.semanticodec.decoder import Sampling

SECOND = 16_000


def noise(*shape, seed=0):
    return 0.2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def codec():
    found = SemantiCodec(tiny()).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # what starts at zero would hide its path
        for parameter in found.decoder.unet.parameters():
            if not parameter.any():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        frames = found.bank(noise(8, 20_720))
        features = found.encoder.features(frames).flatten(0, 1)
        for vocab in found.semantic_vocabs:  # features of a random extractor lie close together
            found.encoder.semantic.fill(features[:vocab].clone())
    return found


def test_rates(codec):
    assert (codec.sample_rate, codec.token_rate) == (16_000, 50)
    assert codec.bitrate == 25 * (8 + 8) and codec.bitrate_of(64) == 25 * (6 + 8)


def test_a_batch_equals_its_recordings_alone(codec):
    waves = [noise(samples, seed=samples) for samples in (900, 16_000, 45_000)]
    alone = [codec.encode(wave, SECOND) for wave in waves]
    together = codec.encode(waves, SECOND)
    padded = codec.encode(
        torch.nn.utils.rnn.pad_sequence(waves, batch_first=True), SECOND, lengths=[900, 16_000, 45_000]
    )
    assert torch.equal(together, padded)
    for row, expected in zip(together, alone, strict=True):
        count = expected.shape[1]
        assert torch.equal(row[:count], expected[0]) and (row[count:] == -1).all()
    assert [tokens.shape[1] for tokens in alone] == [4, 28, 72]


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_a_stream_equals_the_whole(codec, rate):
    wave = noise(2, 3 * rate + 77)
    expected = codec.encode(wave[None], rate)[0]
    for block, at_once in ((5_001, 1), (100_000, 3)):
        blocks = codec.encode_blocks(wave.split(block, dim=1), rate, segments_at_once=at_once)
        assert torch.equal(torch.cat(list(blocks)), expected)


def test_shapes_that_mean_the_same(codec):
    wave = noise(20_000)
    expected = codec.encode(wave, SECOND)
    for same in (wave[None], wave[None, None], [wave], [wave.numpy()], wave.numpy(), wave.double()):
        assert torch.equal(codec.encode(same, SECOND), expected)
    stereo = torch.stack([wave + 0.1, wave - 0.1])[None]
    assert torch.equal(codec.encode(stereo, SECOND), expected)
    assert torch.equal(
        codec.encode(torch.stack([wave, noise(20_000, seed=5)])[None], SECOND, channel="first"), expected
    )
    assert codec.encode(noise(1, 6, 20_000), SECOND).shape == expected.shape


def test_editing_a_later_segment_leaves_earlier_tokens_alone(codec):
    wave = noise(1, 4 * 20_480)
    edited = wave.clone()
    edited[:, 2 * 20_480 + 240 :] += 0.3 * torch.sin(torch.arange(edited.shape[1] - 2 * 20_480 - 240) / 7)
    before, after = codec.encode(wave, SECOND), codec.encode(edited, SECOND)
    assert torch.equal(before[:, :64], after[:, :64])
    assert not torch.equal(before[:, 64:], after[:, 64:])


def test_features_and_embeddings(codec):
    wave = noise(2, 30_000)
    tokens, features = codec.encode(wave, SECOND), codec.features(wave, SECOND)
    assert features.shape == (2, 48, 128) and tokens.shape == (2, 48, 2)
    centres = codec.encoder.semantic.codebook()
    assert torch.equal(torch.cdist(features, centres.expand(2, -1, -1)).argmin(-1), tokens[..., 0])
    embedded = codec.embed(tokens)
    assert torch.equal(embedded[..., 128:], centres[tokens[..., 0]])
    padded = torch.cat([tokens, torch.full((2, 3, 2), -1)], dim=1)
    assert (codec.embed(padded)[:, 48:] == -1).all() and torch.equal(codec.embed(padded)[:, :48], embedded)


@pytest.mark.parametrize("sampler, steps", [("ddim", 2), ("dpm++", 2)])
def test_rows_of_a_batch_sound_like_alone(codec, sampler, steps):
    """Of one window, of exactly one window, and of three; the batch must not change any join."""
    rows = [noise_tokens(count, count) for count in (5, 32, 70)]
    options = {"steps": steps, "sampler": sampler, "seed": 3}
    alone = [codec.decode(row[None], **options)[0] for row in rows]
    together = codec.decode(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1), **options)
    for found, expected in zip(together, alone, strict=True):
        count = expected.shape[-1]
        torch.testing.assert_close(found[:, :count], expected, atol=1e-4, rtol=1e-3)
        assert not found[:, count:].any()
    assert [wave.shape[-1] for wave in alone] == [5 * 640, 32 * 640, 70 * 640]


def noise_tokens(count, seed, vocabs=(256, 256)):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(vocab, (count,), generator=generator) for vocab in vocabs], dim=1)


def test_blocks_of_sound_equal_the_whole(codec):
    tokens = noise_tokens(100, 0)
    pieces = list(codec.decode_blocks(tokens, sampling=Sampling(steps=2, seed=1), windows_at_once=2))
    assert len(pieces) > 2
    torch.testing.assert_close(
        torch.cat(pieces), codec.decode(tokens[None], steps=2, seed=1)[0, 0], atol=1e-5, rtol=1e-4
    )


def test_editing_the_last_window_leaves_earlier_sound_alone(codec):
    tokens = noise_tokens(88, 0)  # windows 0..32, 28..60, 56..88
    edited = tokens.clone()
    edited[60:] = noise_tokens(28, 9)
    ours, theirs = (codec.decode(row[None], steps=2, windows_at_once=1)[0, 0] for row in (tokens, edited))
    assert torch.equal(ours[: 56 * 640], theirs[: 56 * 640])
    assert not torch.equal(ours[56 * 640 :], theirs[56 * 640 :])


def test_seed_decides_the_sound(codec):
    tokens = noise_tokens(8, 0)[None]
    first, again, other = (codec.decode(tokens, steps=2, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("vocab", [64, 128, 256])
def test_every_vocabulary(codec, vocab):
    tokens = codec.encode(noise(1, 20_000), SECOND, semantic_vocab=vocab)
    assert tokens[..., 0].max() < vocab
    assert codec.decode(tokens, steps=1, semantic_vocab=vocab).isfinite().all()
    assert len({codec.fingerprint(vocab) for vocab in codec.semantic_vocabs}) == 3


def test_fingerprint_survives_half_precision(codec, tmp_path):
    codec.save_pretrained(tmp_path / "codec", dtype=torch.float16)
    loaded = [SemantiCodec.from_pretrained(tmp_path / "codec", dtype=dtype) for dtype in (None, torch.bfloat16)]
    assert loaded[0].fingerprint() == loaded[1].fingerprint()


@pytest.mark.parametrize("samples", [1, 160, 399, 400, 2_560, 20_480, 20_481])
def test_short_and_odd_lengths(codec, samples):
    tokens = codec.encode(noise(1, samples), SECOND)
    assert tokens.shape == (1, 4 * -(-samples // 2_560), 2) and tokens.min() >= 0


def test_silence_and_clipping_are_ordinary_sound(codec):
    for wave in (torch.zeros(1, 30_000), noise(1, 30_000).sign(), 100 * noise(1, 30_000)):
        assert codec.encode(wave, SECOND).shape == (1, 48, 2)


@pytest.mark.parametrize(
    "wave, rate, message",
    [
        (torch.zeros(0), SECOND, "no samples"),
        ([torch.zeros(100), torch.zeros(0)], SECOND, "no samples"),
        (torch.tensor([0.0, float("nan")]), SECOND, "1 samples that are not finite"),
        (torch.tensor([0.0, float("inf")]), SECOND, "not finite"),
        (torch.zeros(100, dtype=torch.int16), SECOND, "divide 16-bit integers"),
        (torch.zeros(1, 1, 1, 9), SECOND, r"must be \(S,\), \(B, S\) or \(B, C, S\)"),
        (torch.zeros(100), 0, "sample_rate"),
        ([], SECOND, "no recording"),
    ],
)
def test_bad_sound_is_refused(codec, wave, rate, message):
    with pytest.raises(ValueError, match=message):
        codec.encode(wave, rate)


@pytest.mark.parametrize(
    "tokens, message",
    [
        (torch.zeros(3, 2, dtype=torch.int64), r"must be integers \(B, N, 2\)"),
        (torch.zeros(1, 3, 2), "must be integers"),
        (torch.tensor([[[256, 0]]]), r"semantic token 256 \(row 0, position 0\) is outside 0\.\.255"),
        (torch.tensor([[[0, 0], [0, 300]]]), r"acoustic token 300 \(row 0, position 1\)"),
        (torch.tensor([[[-1, 0]]]), "semantic token -1"),
        (torch.tensor([[[-1, -1]]]), "recording without tokens"),
        (torch.tensor([[[-1, -1], [0, 0]]]), "only stand behind"),
        (torch.zeros(0, 3, 2, dtype=torch.int64), "nothing to decode"),
    ],
)
def test_bad_tokens_are_refused(codec, tokens, message):
    with pytest.raises(ValueError, match=message):
        codec.decode(tokens)


def test_bad_options_are_refused(codec):
    wave, tokens = noise(1, 1_000), noise_tokens(2, 0)[None]
    with pytest.raises(ValueError, match="no semantic vocabulary of 100"):
        codec.encode(wave, SECOND, semantic_vocab=100)
    with pytest.raises(ValueError, match="length_mode"):
        codec.encode(wave, SECOND, length_mode="round")
    with pytest.raises(ValueError, match="channel"):
        codec.encode(wave, SECOND, channel="left")
    with pytest.raises(ValueError, match=r"outside 0\.\.1000"):
        codec.encode(wave, SECOND, lengths=[1_001])
    with pytest.raises(ValueError, match="sampler"):
        codec.decode(tokens, sampler="euler")


@pytest.mark.parametrize("minutes", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_length(codec, minutes):
    """Blocks are made on the fly; a quarter of the length must need as much memory as the whole."""
    import tracemalloc

    minute = noise(1, 60 * SECOND)
    codec.encoder.audiomae.forward, forward = _cheap(codec), codec.encoder.audiomae.forward
    try:
        peaks = []
        for length in (minutes // 4, minutes):
            tracemalloc.start()
            alive = [0]
            count = sum(len(tokens) for tokens in codec.encode_blocks(_counted(minute, length, alive), SECOND))
            peaks.append((tracemalloc.get_traced_memory()[1], max(alive)))
            tracemalloc.stop()
            assert count == 25 * 60 * length
    finally:
        codec.encoder.audiomae.forward = forward
    assert peaks[1][0] < 1.5 * peaks[0][0] + 1e6
    assert peaks[1][1] <= 2, "blocks must be read as they are needed"


def _cheap(codec):
    config = codec.config.encoder.audiomae
    return lambda frames, visible=None: torch.zeros(len(frames), 1 + 64, config.width)


def _counted(block, times, alive):
    """Yields copies of a block and keeps count of those that are still referenced."""
    import weakref

    living = set()
    for number in range(times):
        copy = block.clone()
        living.add(number)
        weakref.finalize(copy.untyped_storage(), living.discard, number)
        alive.append(len(living))
        yield copy
        del copy


def test_presets_are_registered():
    assert "semanticodec_tiny" in mm.list_models()
    codec = mm.create_model("semanticodec_tiny", seed=1)
    assert isinstance(codec, SemantiCodec)
    trained = {name.partition(".")[0] for name, p in codec.encoder.named_parameters() if p.requires_grad}
    assert trained == {"acoustic"}
    elements = sum(value.numel() for value in codec.state_dict().values())
    assert 2 * elements < 4_000_000, "the shipped weights must stay below 4 MB in half precision"
    assert not any(
        p.requires_grad for p in itertools.chain(codec.decoder.vae.parameters(), codec.decoder.vocoder.parameters())
    )
    assert np.isfinite(codec.bitrate)
