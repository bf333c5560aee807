"""Every patch carries the label of what it shows."""

from __future__ import annotations

import numpy as np

from mm.data.dense import TARGETS, UNKNOWN, dense_batch, scene_labels
from mm.data.scenes import Scene, Thing
from mm.data.words import COLOURS


def test_boards_and_scenes_alternate_and_only_their_targets_apply():
    pictures, labels = dense_batch(range(6))
    assert pictures.shape == (6, 64, 64, 3)
    assert (labels["digit"][0::2] != UNKNOWN).all() and (labels["digit"][1::2] == UNKNOWN).all()
    assert (labels["colour"][0::2] == UNKNOWN).all() and (labels["colour"][1::2] != UNKNOWN).all()
    assert (labels["row"][:, 3] == 3).all() and (labels["col"][:, :, 5] == 5).all()


def test_scene_patches_show_the_colour_of_their_label():
    """The mean colour of a plain, large thing's patches is nearest to that colour's RGB."""
    thing = Thing(shape="square", colour="red", x=0.5, y=0.5)
    labels = scene_labels(Scene(things=(thing,)), 8)
    assert (labels["colour"] == TARGETS["colour"].index("red")).sum() == (labels["place"] == 4).sum() > 0
    pictures, batch = dense_batch(range(1, 81, 2))
    patches = pictures.reshape(40, 8, 8, 8, 8, 3).transpose(0, 1, 3, 2, 4, 5)[:, :, :, 3:5, 3:5].mean((3, 4))
    covered = batch["colour"] < len(COLOURS)
    distance = np.linalg.norm(patches[:, :, :, None] - np.array(list(COLOURS.values())), axis=-1)
    agrees = (distance.argmin(-1) == batch["colour"])[covered].mean()
    assert agrees > 0.45  # stripes, rings and stars leave some centres bare; chance is 1 / 8


def test_a_picture_depends_on_its_seed_alone():
    first, _ = dense_batch([5, 8])
    second, _ = dense_batch([8, 5])
    assert (first == second[::-1]).all()
