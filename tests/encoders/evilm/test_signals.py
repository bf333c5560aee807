"""Does E-ViLM learn what the paper is about, and do the controls fail? The shipped weights and, slow, the recipes."""

from __future__ import annotations

import pytest
import torch

import mm
from mm.codecs.semantic_vq.evaluate import evaluate as evaluate_codes
from mm.encoders.evilm.data import held_out_clips
from mm.encoders.evilm.evaluate import evaluate, frames_of, masked_codes, one_frame, question_accuracy, shuffled_frames

TOKENIZERS = {"shipped": "semantic_vq_tiny", "pixels": "semantic_vq_tiny_pixels"}


@pytest.fixture(scope="module")
def tokenizer():
    return mm.load("semantic_vq_tiny")


def test_untrained_weights_and_changed_frames_fail_every_signal(tokenizer):
    found = evaluate(mm.create_model("evilm_tiny"), seed=3, rounds=1, tokenizer=tokenizer)
    assert max(found[name] for name in found if name.startswith("left_or_right")) <= 0.7
    assert max(found[name] for name in found if "_r1" in name) <= 0.2
    assert found["masked_codes"] - found["masked_codes_other_caption"] <= 0.05


def test_changed_frames_are_what_they_say():
    frames = frames_of(held_out_clips(0)[:8])
    single, mixed = one_frame(frames, 0), shuffled_frames(frames, 0)
    assert single.shape == (8, 1, 3, 64, 64)
    for row in range(8):
        assert any(torch.equal(single[row, 0], frame) for frame in frames[row])
        order = [next(i for i in range(4) if torch.equal(frame, frames[row, i])) for frame in mixed[row]]
        assert sorted(order) == [0, 1, 2, 3]
    assert not torch.equal(mixed, frames)
    assert any(not torch.equal(single[row, 0], frames[row, 0]) for row in range(8))


def test_the_shipped_model_tells_directions_only_from_order(tokenizer):
    model, clips = mm.load("evilm_tiny"), held_out_clips(7)
    frames = frames_of(clips)
    assert question_accuracy(model, clips, ("choice",))["choice"] >= 0.9
    for changed in (one_frame(frames, 1), shuffled_frames(frames, 1)):
        assert 0.3 <= question_accuracy(model, clips, ("choice",), changed)["choice"] <= 0.7
    backwards = question_accuracy(model, clips, ("choice",), frames.flip(1))["choice"]
    assert backwards <= 0.1, "a clip played backwards moves the other way"
    found = masked_codes(model, tokenizer, clips)
    assert found["masked_codes"] >= found["masked_codes_other_caption"] + 0.15
    assert found["masked_codes"] >= found["masked_codes_most_frequent"] + 0.1


def test_codes_of_the_oracle_beat_codes_of_pixels_under_another_texture():
    found = {name: evaluate_codes(mm.load(weights), seed=5, count=64) for name, weights in TOKENIZERS.items()}
    found["untrained"] = evaluate_codes(mm.create_model("semantic_vq_tiny"), seed=5, count=64)
    semantic, pixels, untrained = (found[name] for name in ("shipped", "pixels", "untrained"))
    assert semantic["class_accuracy_shifted"] >= 1.5 * pixels["class_accuracy_shifted"]
    assert semantic["mutual_information_shifted"] >= pixels["mutual_information_shifted"] + 0.03
    assert semantic["class_accuracy_shifted"] >= untrained["class_accuracy_shifted"] + 0.1
    assert semantic["thing_perplexity"] > 0.15, "many codes name things"


def fit(config: str, out, *words: str):
    """Train a packaged configuration; returns the folder of the model."""
    from mm.cli import main

    assert main(["fit", "--config", config, "--out", str(out), "--trainer.limit_val_batches", "0", *words]) == 0
    return str(out / "model")


@pytest.mark.slow
def test_the_recipe_of_the_tokenizer_beats_its_pixel_control(tmp_path):
    """Both recipes, about five minutes each on two free cores."""
    names = {"semantic": "semantic_vq/tiny", "pixels": "semantic_vq/tiny_pixels"}
    found = {key: evaluate_codes(mm.load(fit(name, tmp_path / key)), seed=1) for key, name in names.items()}
    print(found)
    assert found["semantic"]["class_accuracy_shifted"] >= 1.5 * found["pixels"]["class_accuracy_shifted"]
    assert found["semantic"]["mutual_information_shifted"] >= found["pixels"]["mutual_information_shifted"] + 0.03
    assert found["semantic"]["usage"] >= 0.5


@pytest.mark.slow
def test_the_recipe_of_the_model_reaches_its_signals(tmp_path, tokenizer):
    """Both stages on the shipped tokenizer, about 25 minutes on two free cores."""
    first = fit("evilm/tiny", tmp_path / "first")
    model = mm.load(fit("evilm/tiny_finetune", tmp_path / "second", "--model.evilm", first))
    found = evaluate(model, seed=1, tokenizer=tokenizer)
    print(found)
    assert found["left_or_right"] >= 0.9
    assert max(found["left_or_right_one_frame"], found["left_or_right_shuffled"]) <= 0.6
    assert found["text_to_video_r1"] >= 0.6
    assert found["masked_codes"] >= found["masked_codes_other_caption"] + 0.1
