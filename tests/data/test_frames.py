import itertools
from collections import Counter

import numpy as np
import pytest

from mm.data.frames import ClipConfig, clip_sample, held_out, sample_clip
from mm.data.words import COLOURS, DIRECTIONS, GROUND_PATTERNS, SHAPES

EVERYTHING = {"shapes": SHAPES, "directions": DIRECTIONS, "patterns": GROUND_PATTERNS}


@pytest.mark.parametrize("pair", [("left", "right"), ("up", "down")])
def test_opposite_directions_show_the_same_set_of_frames(pair):
    config = ClipConfig(directions=pair, num_frames=5)
    for seed in range(10):
        one, other = (sample_clip(seed, config, direction=direction) for direction in pair)
        np.testing.assert_array_equal(one.frames, other.frames[::-1])
        assert not np.array_equal(one.frames, other.frames)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_thing_really_moves_that_way(direction):
    config = ClipConfig(directions=DIRECTIONS, grounds=("black",), size=48)
    for seed in range(5):
        bright = sample_clip(seed, config, direction=direction).frames.max(-1).astype(float)
        weight = np.where(bright > 60, bright, 0.0)
        axis = 1 if direction in ("left", "right") else 0
        along = weight.sum(2 - axis)  # (F, side)
        centres = (along * np.arange(48)).sum(-1) / along.sum(-1)
        steps = np.diff(centres) * (1 if direction in ("right", "down") else -1)
        assert (steps > 2).all()


@pytest.mark.parametrize("directions", [("left", "right"), DIRECTIONS])
def test_directions_are_exactly_balanced(directions):
    config = ClipConfig(directions=directions, size=8)
    answers = Counter(clip_sample(seed, config).answer for seed in range(40))
    assert answers == {direction: 40 // len(directions) for direction in directions}


def test_question_names_the_two_choices_or_is_open():
    assert clip_sample(0).question == "left or right?"
    assert clip_sample(0, ClipConfig(directions=DIRECTIONS)).question == "in which direction does the square move?"


def test_64_combinations_are_held_out_evenly():
    every = list(itertools.product(COLOURS, SHAPES, DIRECTIONS, GROUND_PATTERNS))
    chosen = [combination for combination in every if held_out(combination)]
    assert len(chosen) == 64
    for place, count in enumerate((8, 8, 16, 16)):
        assert set(Counter(combination[place] for combination in chosen).values()) == {count}
    assert len({combination[:2] for combination in chosen}) == 64


@pytest.mark.parametrize("which", ["seen", "held_out"])
def test_clips_keep_to_their_combinations(which):
    config = ClipConfig(combinations=which, size=8, **EVERYTHING)
    for seed in range(60):
        clip = sample_clip(seed, config)
        combination = (clip.thing.colour, clip.thing.shape, clip.direction, clip.scenes[0].pattern)
        assert held_out(combination) == (which == "held_out")


def test_pictures_are_frames_and_pure_in_the_seed():
    sample, again = clip_sample(3, ClipConfig(num_frames=6)), clip_sample(3, ClipConfig(num_frames=6))
    assert len(sample.images) == 6
    for one, other in zip(sample.images, again.images, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"num_frames": 1}, "at least 2 frames"),
        ({"directions": ("sideways",)}, "directions must be some of"),
        ({"shapes": ()}, "got nothing"),
        ({"combinations": "held_out", "colours": ("red",)}, "no held_out combination is left"),
    ],
)
def test_wrong_config_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        ClipConfig(**wrong)
