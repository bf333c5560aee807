"""What VisionThink is about: asking when it must. The shipped demonstration, and the recipe with its control."""

import pytest

import mm
from mm.pruning.visionthink.evaluate import evaluate
from mm.training.cli import fit


def test_the_demonstration_asks_when_it_must_and_only_then():
    found = evaluate(mm.load("visionthink_tiny"), seed=3, count=128)  # pictures that the shipped scores do not use
    assert found["hard_calls"] >= 0.9 and found["easy_calls"] <= 0.2
    assert found["accuracy"] >= found["accuracy_always"] - 0.02
    assert found["retain_ratio"] <= 0.75 * found["retain_ratio_always"]
    assert found["hard_accuracy_never"] <= 0.25 and found["hard_accuracy_blank"] <= 0.25
    assert found["hard_accuracy"] >= 0.8


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [True, False], ids=["penalty", "no penalty"])
def test_the_recipe_and_its_control_without_a_penalty(penalty, tmp_path):
    assert fit(["--config", "visionthink/warm_start", "--out", str(tmp_path / "start")]) == 0
    options = [] if penalty else ["--model.tool_penalty", "0", "--model.direct_penalty", "0"]
    start = str(tmp_path / "start" / "model")
    arguments = ["--config", "visionthink/tiny", "--model.start", start, "--out", str(tmp_path / "run"), *options]
    assert fit(arguments) == 0
    found = evaluate(mm.load(tmp_path / "run" / "model"), count=128)
    assert found["hard_calls"] >= 0.9
    assert found["easy_calls"] <= 0.2 if penalty else found["easy_calls"] >= 0.9
