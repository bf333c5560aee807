"""What the shipped codec learned: its decoder listens to the tokens, and both kinds of tokens carry their part."""

import pytest
import torch

import mm
from mm.codecs.semanticodec import evaluate
from mm.codecs.semanticodec.mel import LogMel

SEED, COUNT = 3, 16
"""Other held-out sounds than those of the stated scores."""


@pytest.fixture(scope="module")
def codec():
    return mm.load("semanticodec_tiny")


@pytest.fixture(scope="module")
def waves(codec):
    return evaluate.held_out(codec, SEED, COUNT)["waves"]


@pytest.fixture(scope="module")
def target(codec, waves):
    return LogMel()(waves[:, : codec.config.encoder.segment_samples])


def test_every_loss_of_information_costs(codec, waves, target):
    encoded = codec.encoder(codec.bank(waves))
    found = evaluate.v_errors(codec, evaluate.conditions(encoded), target, SEED)
    assert list(found) == sorted(found, key=found.__getitem__), "unquantised, tokens, semantic alone, another sound's"
    assert found["tokens"] < 0.85 * found["semantic_only"] < 0.3 * found["shuffled"]


@pytest.mark.parametrize("vocab", [64, 256])
def test_decoded_sounds_are_nearest_to_their_own_source(codec, waves, target, vocab):
    """With the smallest and the largest semantic vocabulary; training drew one per batch."""
    encoded = codec.encoder(codec.bank(waves), vocab=vocab)
    assert int(encoded.tokens[..., 0].max()) < vocab
    found = evaluate.decoded_mel(codec, encoded.condition, SEED, 5)
    assert evaluate.retrieval(found, target) >= 0.8
    assert evaluate.retrieval(found.roll(1, 0), target) < 0.2


def test_semantic_tokens_know_the_domain_better_than_acoustic_ones(codec):
    found = evaluate.probes(codec, SEED, count=120)
    assert found["probe_semantic"] > 0.9 > found["probe_acoustic"] + 0.05
    assert found["probe_shuffled_labels"] < 0.55


def test_all_codes_are_in_use(codec, waves):
    """A stalled codebook would name everything by a few codes."""
    encoded = codec.encoder(codec.bank(waves))
    semantic, acoustic = encoded.tokens[encoded.keep].unbind(-1)
    assert evaluate.usage(semantic, 256) > 0.2 and evaluate.usage(acoustic, 256) > 0.2
    assert evaluate.usage(torch.zeros_like(semantic), 256) == pytest.approx(1 / 256)
