"""The pieces that the pair with 256 visual tokens is trained from."""

from __future__ import annotations

import pytest
import torch

from mm.data.scene_patches import ScenePatchConfig, scene_rows
from mm.data.split import Split
from mm.data.words import BOARD_WORDS, SCENE_WORDS
from mm.zoo.class_tower_module import ClassTowerModule
from mm.zoo.host_module import WideHostModule, scene_words
from mm.zoo.presets import grid_waves


@pytest.fixture(scope="module")
def batch():
    return scene_rows(ScenePatchConfig(), Split("train").seeds[:4])


def test_class_token_is_asked_behind_every_listed_block(batch):

    module = ClassTowerModule(options={"depth": 2}, asked=(0, 1)).eval()
    both, _ = module.compute_loss(batch)
    module.asked = [1]
    last, _ = module.compute_loss(batch)
    assert both != last


def test_background_weighs_less_than_things(batch):
    logits = torch.zeros(1, 2, 9)
    logits[0, 0, 0] = 5.0  # right about a thing, undecided about background
    thing_right, share = ClassTowerModule._loss(logits, torch.tensor([[0, 8]]), "colour")
    background_right, _ = ClassTowerModule._loss(logits.flip(1).roll(8, -1), torch.tensor([[0, 8]]), "colour")
    assert thing_right < background_right and share == 1.0


def test_asked_must_end_with_the_last_block():
    with pytest.raises(ValueError, match="end with the last"):
        ClassTowerModule(asked=(1, 3))


def test_neighbours_have_alike_position_embeddings():
    waves = grid_waves(96, 16)
    near, far = waves[100] @ waves[101], waves[100] @ waves[10]
    assert near > 1.2 * far and len(torch.unique(waves, dim=0)) == 256


def test_alignment_names_what_a_patch_shows():
    _, shown = WideHostModule.rows(Split("train").seeds[:2])
    nothing = len(BOARD_WORDS) + len(SCENE_WORDS)
    assert (shown == nothing).float().mean() > 0.8
    word = scene_words(torch.tensor([1]), torch.tensor([0]), torch.tensor([0]))
    assert SCENE_WORDS[int(word) - len(BOARD_WORDS)] == "2redcircle"
