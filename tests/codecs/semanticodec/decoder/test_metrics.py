"""Distances, retrieval and word errors."""

from __future__ import annotations

import pytest
import torch

from mm.codecs.semanticodec.metrics import (
    mel_distance,
    retrieval_accuracy,
    spectral_convergence,
    stft_distance,
    word_error_rate,
)
from mm.codecs.semanticodec.sounds import sounds_batch


@pytest.fixture(scope="module")
def waves():
    return torch.from_numpy(sounds_batch(range(6), 8000)[0])


@pytest.mark.parametrize("distance", [mel_distance, stft_distance])
def test_distances_are_zero_for_equal_sounds_and_grow_with_damage(distance, waves):
    assert not distance(waves, waves).any()
    noise = torch.randn(waves.shape, generator=torch.Generator().manual_seed(0))
    little, much = (distance(waves + level * noise, waves) for level in (0.003, 0.03))
    assert (little > 0).all() and (little < much).all()
    torch.testing.assert_close(distance(waves[2:3], waves[3:4]), distance(waves, waves.roll(-1, 0))[2:3])
    with pytest.raises(ValueError, match="one shape"):
        distance(waves, waves[:, :-1])


def test_convergence_is_the_share_of_the_magnitudes_that_is_wrong(waves):
    """A gain leaves out the same share of every bin, so loud peaks count as much as they are loud."""
    for gain, wrong in ((1.0, 1e-5), (0.7, 0.3), (0.0, 1.0), (1.5, 0.5)):
        torch.testing.assert_close(spectral_convergence(gain * waves, waves), torch.full((6,), wrong))
    soft, loud = waves.clone(), waves.clone()
    soft[:, 4000:], loud[:, :4000] = 0.01 * soft[:, 4000:], 0.01 * loud[:, :4000]
    assert (spectral_convergence(soft, waves) + spectral_convergence(loud, waves) > 1).all()
    flat = torch.zeros(2, 8000, requires_grad=True)
    spectral_convergence(flat, torch.zeros(2, 8000)).sum().backward()
    assert flat.grad is not None and flat.grad.isfinite().all()


def test_the_mel_distance_of_a_gain_is_its_logarithm():
    """Ten times louder is one decade in every bin of the seven windows that is above the floor."""
    wave = 0.05 * torch.randn(1, 16000, generator=torch.Generator().manual_seed(0))
    found = float(mel_distance(10 * wave, wave))
    filled = 7 - 0.6  # narrow windows leave some of their mel filters empty: no difference there
    assert filled - 1.2 < found <= 7.001


def test_retrieval_counts_hits(waves):
    assert retrieval_accuracy(waves, waves, mel_distance) == 1.0
    assert retrieval_accuracy(waves.roll(1, 0), waves, mel_distance) == 0.0
    with pytest.raises(ValueError, match="at least two"):
        retrieval_accuracy(waves[:1], waves[:1], mel_distance)


def test_word_errors_ignore_case_and_punctuation():
    said = iter(["Hello, world!", "one two three"])
    rate = word_error_rate(lambda wave, rate: next(said), [torch.zeros(1)] * 2, ["hello world", "one too three four"])
    assert rate == 2 / 6
    with pytest.raises(ValueError, match="no words"):
        word_error_rate(lambda wave, rate: "", [torch.zeros(1)], ["..."])
    with pytest.raises(ValueError, match="one text per sound"):
        word_error_rate(lambda wave, rate: "", [torch.zeros(1)], [])
