"""Learning signals of the shipped weights on held-out phantoms; random and shuffled models fail the same checks.

Slow: the whole recipe in miniature, and the comparison of segmentation from pre-trained and from random weights.
"""

from __future__ import annotations

import pytest

pytest.importorskip("monai")

import mm
from mm.checkpoint import shipped_names
from mm.medical.velvet.evaluate import HeldOut, all_scores, held_out, hidden_attributes, matching, retrieval
from mm.medical.velvet.presets import velvet_tiny

PATIENTS = 64


@pytest.fixture(scope="module")
def data():
    return held_out(3, PATIENTS)


@pytest.fixture(scope="module")
def model():
    if "velvet_tiny" not in shipped_names():
        pytest.skip("velvet_tiny does not ship")
    return mm.load("velvet_tiny")


def learnt(scores: dict[str, float]) -> dict[str, bool]:
    """Which learning signals are there."""
    right, wrong = (scores[f"hidden_attribute_{name}_volume"] for name in ("right", "wrong"))
    return {
        "retrieval": scores["retrieval_r1_of_64"] >= 0.6,
        "shuffled retrieval at chance": scores["retrieval_shuffled"] <= 0.06,
        "hidden words": right >= 0.7 and right - wrong >= 0.2,
        "hard negatives": scores["hard_negative_choice"] >= 0.8,
        "pointing": scores["pointing"] >= 2 * scores["pointing_chance"],
    }


def test_a_random_model_shows_no_signal(data):
    found = learnt(all_scores(velvet_tiny(vision_heads=False), data))
    assert not any(value for name, value in found.items() if name != "shuffled retrieval at chance"), found


def test_the_shipped_model_shows_all_signals(model, data):
    scores = all_scores(model, data)
    assert all(learnt(scores).values()), scores


def test_with_volumes_of_others_the_shipped_model_shows_none(model, data):
    shuffled = HeldOut(data.cases, data.volumes.roll(1, dims=0))
    found = learnt(
        {
            **retrieval(model, shuffled),
            **hidden_attributes(model, shuffled),
            **matching(model, shuffled),
            "pointing": 0.0,
            "pointing_chance": 1.0,
        }
    )
    assert not (found["retrieval"] or found["hidden words"] or found["hard negatives"]), found
