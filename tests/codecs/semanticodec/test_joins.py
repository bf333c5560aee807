"""Joins of the shipped codec: where windows meet, sound is no rougher than inside them."""

import pytest
import torch

import mm
from mm.codecs.semanticodec.windows import window_ranges

TONE_HZ = 440.0


@pytest.fixture(scope="module")
def codec():
    return mm.load("semanticodec_tiny")


@pytest.fixture(scope="module")
def tokens(codec):
    tone = 0.3 * torch.sin(2 * torch.pi * TONE_HZ / 16_000 * torch.arange(20 * 16_000))
    return codec.encode(tone[None], 16_000)


def roughness(wave: torch.Tensor, places: list[int]) -> torch.Tensor:
    """Largest second difference within half a millisecond of each place."""
    bends = wave.double().diff(n=2).abs()
    return torch.stack([bends[place - 8 : place + 8].max() for place in places])


def test_joins_are_as_smooth_as_the_middles_of_windows_and_cuts_are_not(codec, tokens):
    decoder, config = codec.decoder, codec.config.decoder
    starts = [first * decoder.samples_per_token for first, _ in window_ranges(tokens.shape[1], 32, 4)]
    joined = codec.decode(tokens, steps=2)[0, 0]
    joins = [place for start in starts[1:] for place in (start, start + decoder.overlap_samples)]
    middles = [start + config.window_samples // 2 for start in starts[:-1]]
    pieces = codec.decode(torch.cat(tokens[:, : tokens.shape[1] // 28 * 28].split(28, 1)), steps=2)[:, 0]
    cuts = [number * pieces.shape[1] for number in range(1, len(pieces))]
    smooth, rough = roughness(joined, middles).median(), roughness(pieces.flatten(), cuts).median()
    print(f"joins {roughness(joined, joins).median():.4f}, middles {smooth:.4f}, hard cuts {rough:.4f}")
    assert roughness(joined, joins).median() < 1.5 * smooth
    assert rough > 3 * smooth
