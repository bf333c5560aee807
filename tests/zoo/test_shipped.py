"""The weights that ship do what their cards say."""

from __future__ import annotations

import pytest
import torch

import mm
from mm.checkpoint import shipped_names
from mm.encoders.lavi.evaluate import held_out_clips, reordered
from mm.training.answers import accuracy
from mm.zoo.evaluate import blanked, held_out_boards, held_out_scenes, shuffled
from mm.zoo.verify import describe, shipped, size_mb

COUNT = 192
CHANCE = 0.10


@pytest.fixture(scope="module")
def lavi():
    return mm.load("lavi_tiny")


@pytest.fixture(scope="module")
def host():
    return mm.load("llava_tiny")


@pytest.fixture(scope="module")
def boards():
    return held_out_boards(seed=1, count=COUNT)


@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_folder_states_recipe_scores_and_card(name):
    (folder,) = shipped([name])
    assert describe(folder)["metrics"]
    assert size_mb(folder) <= 4.0
    assert "small demonstration" in (folder / "README.md").read_text()


def test_lavi_finds_the_cell_on_boards_of_unseen_scans(lavi, boards):
    assert accuracy(lavi, boards) >= 0.90


def test_without_its_picture_lavi_is_at_chance(lavi, boards):
    for control in (shuffled(boards), blanked(boards)):
        assert abs(accuracy(lavi, control) - CHANCE) < 0.07  # three standard errors of 192 draws


def test_concatenation_on_the_same_frozen_model_is_within_five_points(lavi, host, boards):
    assert abs(accuracy(lavi, boards) - accuracy(host, boards)) <= 0.05


def test_both_answer_about_scenes_far_above_chance(lavi, host):
    """The tiny tower tells shapes apart poorly, which holds both back alike; chance is 0.12."""
    scenes = held_out_scenes(seed=1, count=COUNT)
    assert accuracy(lavi, scenes) > 0.30
    assert accuracy(host, scenes) > 0.30


def test_lavi_reads_the_order_of_frames(lavi):
    clips = held_out_clips(seed=1, count=COUNT)
    assert accuracy(lavi, clips) >= 0.95
    # A shuffled clip keeps its direction by chance: the answer must follow the frames, not the thing.
    assert accuracy(lavi, reordered(clips, seed=2)) < 0.8


def test_the_language_model_is_the_one_that_was_trained_on_text_alone(lavi, host):
    """Same tensors and, without a picture, bit-identical logits, so text perplexity cannot have moved."""
    text = mm.load("tiny_lm").backbone
    ids = torch.tensor([text.tokenizer("question: row 3 col 5? answer: e3seven two").input_ids])
    with torch.no_grad():
        expected = text.model(ids).logits
        assert torch.equal(lavi(ids).logits, expected)
        assert torch.equal(host.backbone.model(ids).logits, expected)
    for key, value in text.model.state_dict().items():
        assert torch.equal(host.backbone.model.state_dict()[key], value), key


def test_answers_do_not_depend_on_the_batch(lavi, host, boards):
    for model in (lavi, host):
        alone = [model.ask(sample.images, sample.question) for sample in boards[:6]]
        from mm.data.collate import collate
        from mm.training.answers import answers_of

        for side in ("left", "right"):
            batch = collate(boards[:6], model.processor, answers=False, padding_side=side)
            assert answers_of(model, batch) == alone
