from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mm.data.drawing import DISTANCES, overlap
from mm.data.marks import mark_pattern
from mm.data.scenes import HELD_OUT_PAIRS, Scene, SceneConfig, Thing, render, sample_scene, thing_masks
from mm.data.words import COLOURS, GROUND_PATTERNS, GROUNDS, PLACES, SHAPES, TEXTURES


def red(shape, **options):
    return Scene(things=(Thing(shape=shape, colour="red", radius=0.3, **options),), ground="black")


def test_scenes_are_pure_in_the_seed():
    assert sample_scene(5) == sample_scene(5) != sample_scene(6)
    np.testing.assert_array_equal(render(sample_scene(5), 40), render(sample_scene(5), 40))


@pytest.mark.parametrize("marks", [False, True])
def test_things_never_touch_and_stay_inside(marks):
    config = SceneConfig(min_things=9, max_things=9, marks=marks)
    for seed in range(30):
        masks = thing_masks(sample_scene(seed, config), 120)
        assert masks.shape == (9, 120, 120)
        assert (np.sum(masks > 0, axis=0) <= 1).all()
        assert (masks.sum((1, 2)) > 60).all()
        assert masks[:, [0, -1]].max() == masks[:, :, [0, -1]].max() == 0


def test_things_of_a_scene_have_different_names_and_places():
    for seed in range(50):
        things = sample_scene(seed, SceneConfig(min_things=4, max_things=9)).things
        assert len({thing.name for thing in things}) == len({thing.place for thing in things}) == len(things)


def test_masks_lie_where_the_place_says():
    for seed in range(30):
        scene = sample_scene(seed)
        for thing, mask in zip(scene.things, thing_masks(scene, 90), strict=True):
            thirds = mask.reshape(3, 30, 3, 30).sum((1, 3))
            assert PLACES[int(thirds.argmax())] == thing.place


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_centred_fills_its_radius_and_differs(shape):
    mask = thing_masks(red(shape), 200)[0]
    rows, columns = np.nonzero(mask > 0.5)
    reach = np.hypot(rows + 0.5 - 100, columns + 0.5 - 100).max() / 200
    assert 0.26 < reach < 0.36
    for other in set(SHAPES) - {shape}:
        theirs = thing_masks(red(other), 200)[0]
        overlap_share = np.minimum(mask, theirs).sum() / np.maximum(mask, theirs).sum()
        assert overlap_share < 0.9


@pytest.mark.parametrize("shape", sorted(DISTANCES))
def test_the_same_description_draws_at_any_size(shape):
    small, large = thing_masks(red(shape), 32)[0], thing_masks(red(shape), 256)[0]
    averaged = large.reshape(32, 8, 32, 8).mean((1, 3))
    assert np.abs(averaged - small).mean() < 0.01
    assert abs(small.mean() / large.mean() - 1) < 0.05


def test_edges_are_anti_aliased():
    values = np.unique(thing_masks(red("circle"), 64)[0])
    assert len(values) > 10


@pytest.mark.parametrize("texture", TEXTURES[1:])
def test_textures_change_the_thing_and_nothing_else(texture):
    plain, textured = (render(red("square", texture=name), 128).astype(int) for name in ("plain", texture))
    inside = thing_masks(red("square"), 128)[0] > 0
    changed = np.abs(plain - textured).max(-1) > 30
    assert changed[inside].mean() > 0.1 and not changed[~inside].any()


def test_colour_words_are_what_is_drawn():
    for colour, rgb in COLOURS.items():
        scene = Scene(things=(Thing(shape="circle", colour=colour, radius=0.3),), ground="grey")
        np.testing.assert_array_equal(render(scene, 64)[32, 32], rgb)
    for ground, rgb in GROUNDS.items():
        np.testing.assert_array_equal(render(Scene(things=(), ground=ground), 64)[0, 0], rgb)


def test_ground_patterns_differ_and_keep_the_mean_colour():
    pictures = {pattern: render(Scene(things=(), ground="grey", pattern=pattern), 96) for pattern in GROUND_PATTERNS}
    assert len({picture.tobytes() for picture in pictures.values()}) == len(GROUND_PATTERNS)
    for picture in pictures.values():
        np.testing.assert_allclose(picture.mean((0, 1)), GROUNDS["grey"], atol=3)


def marked(digit, colour="blue", seed=0):
    thing = Thing(shape="square", colour=colour, mark=digit, x=0.4, y=0.61)
    return render(Scene(things=(thing,), grain_seed=seed), 112)


@pytest.mark.parametrize("colour", sorted(COLOURS))
def test_averaging_two_by_two_pixels_erases_marks_exactly(colour):
    full = np.stack([marked(digit, colour) for digit in range(10)]).astype(int)
    assert all(np.abs(full[a] - full[b]).max() >= 55 for a in range(10) for b in range(a))
    halved = full.reshape(10, 56, 2, 56, 2, 3).mean((2, 4))
    spread = [np.abs(halved[a] - halved[b]).max() for a in range(10) for b in range(a)]
    assert max(spread) == 0


def nearest_mean_accuracy(features, labels):
    """Share of the second half that is nearest to the right class mean of the first half."""
    half = len(labels) // 2
    means = np.stack([features[:half][labels[:half] == label].mean(0) for label in range(10)])
    distance = np.square(features[half:, None] - means).sum(-1)
    return (distance.argmin(1) == labels[half:]).mean()


def test_what_other_filters_leave_drowns_in_grain_but_full_resolution_is_readable():
    labels = np.arange(400) % 10
    pictures = [Image.fromarray(marked(label, seed=seed)) for seed, label in enumerate(labels)]
    halves = np.stack([picture.resize((56, 56), Image.Resampling.LANCZOS) for picture in pictures])[:, 28:41, 16:29, 0]
    halves = halves.reshape(400, -1).astype(float)
    fulls = np.stack(pictures).astype(float)[:, 57:83, 33:59, 0]
    contrast = np.abs(np.diff(fulls, axis=1)[:, :, 1:] - np.diff(fulls, axis=1)[:, :, :-1]).reshape(400, -1)
    assert nearest_mean_accuracy(contrast, labels) > 0.95
    assert nearest_mean_accuracy(halves, labels) < 0.2
    assert nearest_mean_accuracy(np.square(halves - halves.mean(0)), labels) < 0.2


def test_marks_have_no_mean_in_any_block_and_are_ten_different_digits():
    shapes = set()
    for digit in range(10):
        pattern, grain = mark_pattern(digit, np.random.default_rng(0))
        assert np.abs(pattern.reshape(7, 2, 5, 2).sum((1, 3))).max() == 0
        assert np.ptp(grain.reshape(7, 2, 5, 2), axis=(1, 3)).max() == 0
        shapes.add(np.abs(pattern).tobytes())
        other, _ = mark_pattern(digit, np.random.default_rng(1))
        assert (np.abs(other) == np.abs(pattern)).all() and (other == pattern)[pattern != 0].mean() < 0.9
    assert len(shapes) == 10


def test_overlap_shares_out_every_pixel_once():
    weights = overlap(7, 20, 0.25, 0.5)
    assert weights.sum() == pytest.approx(0.5 * 20)
    np.testing.assert_allclose(weights.sum(0), 0.5 * 20 / 7, rtol=1e-5)
    np.testing.assert_allclose(weights[5:15].sum(1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("which", ["seen", "held_out"])
def test_scenes_keep_to_their_pairs(which):
    for seed in range(100):
        for thing in sample_scene(seed, SceneConfig(pairs=which)).things:
            assert ((thing.shape, thing.colour) in HELD_OUT_PAIRS) == (which == "held_out")


def test_held_out_pairs_take_every_shape_and_colour_once():
    shapes, colours = zip(*HELD_OUT_PAIRS, strict=True)
    assert Counter(shapes) == dict.fromkeys(SHAPES, 1) and Counter(colours) == dict.fromkeys(COLOURS, 1)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"min_things": 0}, "min_things"),
        ({"max_things": 10}, "max_things"),
        ({"colours": ("mauve",)}, "colours must be some of"),
        ({"patterns": ()}, "got nothing"),
        ({"pairs": "none"}, "pairs"),
        ({"full_size": 56}, "full_size"),
        ({"shapes": ("star",), "colours": ("red",)}, "1 shape and colour pairs are left"),
        ({"shapes": ("star",), "marks": True, "max_things": 1}, "0 shape and colour pairs are left"),
    ],
)
def test_wrong_config_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        SceneConfig(**wrong)


def test_unknown_shape_and_tiny_picture_are_refused():
    with pytest.raises(ValueError, match="unknown shape 'blob'"):
        render(red("blob"), 32)
    with pytest.raises(ValueError, match="at least 8 pixels"):
        render(replace(red("star"), ground="grey"), 4)
