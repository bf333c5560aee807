"""Learning signals of the shipped weights on held-out phantoms; random and shuffled models fail the same checks."""

from __future__ import annotations

import pytest

pytest.importorskip("monai")

import mm
from mm.checkpoint import shipped_names
from mm.medical.velvet.evaluate import all_scores, matching, retrieval
from mm.medical.velvet.held_out import encode, held_out
from mm.medical.velvet.hidden_words import hidden_attributes
from mm.medical.velvet.presets import velvet_tiny
from mm.medical.velvet.transfer import GOOD, TransferConfig, compare
from mm.medical.velvet.transfer import evaluate as evaluate_segmenter
from mm.medical.velvet.vision import VolumeFeatures

PATIENTS, PAIRS = 64, 256
"""All scores; hard negatives, whose share needs more samples to be told from the aim."""
shipped = pytest.mark.skipif("velvet_tiny" not in shipped_names(), reason="velvet_tiny does not ship")


@pytest.fixture(scope="module")
def data():
    return held_out(3, PATIENTS)


@pytest.fixture(scope="module")
def scores(model, data):
    return all_scores(model, data) | matching(model, held_out(9, PAIRS))


@pytest.fixture(scope="module")
def model():
    return mm.load("velvet_tiny")


@pytest.fixture(scope="module")
def features(model, data):
    return encode(model, data)


def learnt(scores: dict[str, float]) -> dict[str, bool]:
    """Which learning signals are there."""
    right, wrong = (scores[f"hidden_attribute_{name}_volume"] for name in ("right", "wrong"))
    return {
        "retrieval": scores["retrieval_r1_of_64"] >= 0.6,
        "shuffled retrieval at chance": scores["retrieval_shuffled"] <= 0.06,
        "hidden words": right >= 0.6 and right - wrong >= 0.1,
        "hard negatives": scores["hard_negative_choice"] >= 0.8,
        "occlusion": scores["occlusion"] >= 2 * scores["occlusion_chance"],
        "evidence": scores["evidence"] >= 3 * scores["evidence_chance"],
    }


def test_a_random_model_shows_no_signal(data):
    found = learnt(all_scores(velvet_tiny(vision_heads=False), data))
    assert not any(value for name, value in found.items() if name != "shuffled retrieval at chance"), found


@shipped
def test_the_shipped_model_shows_every_signal(scores):
    assert all(learnt(scores).values()), scores


@shipped
@pytest.mark.xfail(strict=True, reason="missed: sentences attend to regions without a finding, see docs/velvet.md")
def test_sentences_of_the_shipped_model_attend_to_their_finding(scores):
    assert scores["pointing"] >= 2 * scores["pointing_chance"], scores


@shipped
def test_with_the_volumes_of_others_the_shipped_model_shows_none(model, data, features):
    other = VolumeFeatures(**{level: value.roll(1, dims=0) for level, value in features.__dict__.items()})
    scores = {**retrieval(model, data, other), **hidden_attributes(model, data, other), **matching(model, data, other)}
    found = learnt(scores | {"occlusion": 0.0, "occlusion_chance": 1.0, "evidence": 0.0, "evidence_chance": 1.0})
    assert not (found["retrieval"] or found["hidden words"] or found["hard negatives"]), scores


@pytest.mark.skipif("velvet_tiny_segmenter" not in shipped_names(), reason="velvet_tiny_segmenter does not ship")
def test_the_shipped_segmenter_finds_every_organ_and_a_random_one_none():
    found = evaluate_segmenter(mm.load("velvet_tiny_segmenter"), seed=5, count=4)
    assert found["dice_worst"] >= 0.95, found
    random = evaluate_segmenter(mm.create_model("velvet_tiny_segmenter"), seed=5, count=4)
    assert random["dice_worst"] < 0.1, random


@shipped
@pytest.mark.slow
@pytest.mark.xfail(
    reason="missed: 300 steps from the encoder are no faster than from random weights, see docs/velvet.md"
)
def test_segmentation_learns_in_fewer_steps_from_the_shipped_encoder(model):
    table, _ = compare(model.vision, 3, TransferConfig(), "cpu")
    for row in table:
        assert row["pretrained_worst"] >= GOOD and row["pretrained_steps"] < row["random_steps"], table
