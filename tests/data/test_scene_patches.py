"""Labels of wide scenes against a slow look at the picture."""

from __future__ import annotations

import numpy as np
import pytest

from mm.data.dense import NOTHING, TARGETS
from mm.data.scene_patches import SIDE, WIDE, ScenePatchConfig, patch_labels, patch_owners, place_labels, scene_rows
from mm.data.scenes import Scene, SceneConfig, Thing, sample_scene
from mm.data.split import Split
from mm.data.words import PLACES


def test_a_patch_belongs_to_the_thing_whose_circle_holds_its_centre():
    scene = sample_scene(Split("test").seed(3), WIDE)
    owners = patch_owners(scene)
    for row in range(SIDE):
        for column in range(SIDE):
            x, y = (column + 0.5) / SIDE, (row + 0.5) / SIDE
            inside = [n for n, t in enumerate(scene.things) if (t.x - x) ** 2 + (t.y - y) ** 2 <= t.radius**2]
            assert owners[row, column] == (inside[0] if inside else -1)


def test_rows_run_down_and_columns_to_the_right():
    thing = Thing(shape="ring", colour="blue", x=0.9, y=0.1, radius=0.08)
    labels = patch_labels(Scene(things=(thing,)))
    assert labels["colour"][1, 14] == TARGETS["colour"].index("blue")
    assert labels["shape"][14, 1] == TARGETS["shape"].index(NOTHING)
    assert labels["place"][1, 14] == TARGETS["place"].index("top right")


def test_places_say_what_stands_where():
    scene = sample_scene(Split("test").seed(5), WIDE)
    labels = place_labels(scene)
    found = {(PLACES[place], TARGETS["shape"][shape]) for place, shape in enumerate(labels["shape"])}
    assert {(thing.place, thing.shape) for thing in scene.things} == {pair for pair in found if pair[1] != NOTHING}


def test_every_thing_has_a_patch_and_most_patches_have_none():
    scenes = [sample_scene(Split("train").seed(index), WIDE) for index in range(200)]
    owners = [patch_owners(scene) for scene in scenes]
    assert all(set(range(len(scene.things))) <= set(own.ravel()) for scene, own in zip(scenes, owners, strict=True))
    assert 0.03 < np.mean([own >= 0 for own in owners]) < 0.08


def test_a_batch_holds_pictures_and_labels_of_its_seeds():
    seeds = Split("train").seeds[:3]
    batch = scene_rows(ScenePatchConfig(), seeds)
    assert batch["pictures"].shape == (3, 3, 128, 128) and 0 <= batch["pictures"].min() < batch["pictures"].max() <= 1
    expected = patch_labels(sample_scene(seeds[2], WIDE))["shape"].ravel()
    np.testing.assert_array_equal(batch["patch_shape"][2], expected)
    assert batch["place_colour"].shape == (3, 9)


def test_scale_shrinks_things_and_nothing_else():
    full, small = (sample_scene(7, SceneConfig(scale=scale)) for scale in (1.0, 0.5))
    assert [t.radius * 0.5 for t in full.things] == pytest.approx([t.radius for t in small.things])
    assert [(t.name, t.place) for t in full.things] == [(t.name, t.place) for t in small.things]


@pytest.mark.parametrize("options", [{"scale": 0.0}, {"scale": 1.5}, {"scale": 0.5, "marks": True}])
def test_wrong_scales_are_refused(options):
    with pytest.raises(ValueError, match="scale"):
        SceneConfig(**options)
