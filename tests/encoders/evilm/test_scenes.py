"""Moving things: what is held out, what a set of frames gives away, and where the thing is."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from mm.data import Split
from mm.data.scenes import render
from mm.encoders.evilm.data import held_out_clips
from mm.encoders.evilm.scenes import ANSWERS, QUESTIONS, MovingConfig, combinations, moving_clip
from mm.encoders.evilm.tokenizer import tiny_text_tokenizer


def combination(clip):
    return clip.thing.colour, clip.thing.shape, clip.direction


def test_sixty_four_combinations_are_left_out_evenly():
    kept, left = combinations("seen"), combinations("held_out")
    assert len(left) == 64 and len(kept) == 192 and not set(kept) & set(left)
    assert all(count == 8 for axis in (0, 1) for count in Counter(one[axis] for one in left).values())
    assert Counter(one[2] for one in left) == dict.fromkeys(("left", "right", "up", "down"), 16)
    assert len({one[:2] for one in left}) == 64, "every colour and shape is held out in one direction"


def test_training_never_shows_what_is_held_out():
    shown = {combination(moving_clip(seed)) for seed in range(192)}
    assert shown == set(combinations("seen"))
    assert [combination(clip) for clip in held_out_clips(1)] == list(combinations("held_out"))


@pytest.mark.parametrize(("one", "other"), [("left", "right"), ("up", "down")])
def test_opposite_directions_have_the_same_set_of_frames(one, other):
    a, b = (moving_clip(5, combination=("red", "moon", direction)) for direction in (one, other))
    assert np.array_equal(a.frames, b.frames[::-1]) and not np.array_equal(a.frames, b.frames)
    x, y = (np.diff([getattr(scene.things[0], axis) for scene in a.scenes]) for axis in "xy")
    moved = {"left": -x, "right": x, "up": -y, "down": y}[one]
    assert (moved > 0).all()


def test_covered_patches_hold_the_thing_and_no_more_than_they_must():
    clip = moving_clip(3)
    covered = clip.covered(8)
    for scene, frame, patches in zip(clip.scenes, clip.frames, covered, strict=True):
        empty = render(replace(scene, things=()), 64)
        changed = np.abs(frame.astype(int) - empty).max(-1)
        outside = ~patches.repeat(8, 0).repeat(8, 1)
        assert changed[outside].mean() < 0.5, "only soft edges lie outside"
        assert changed.reshape(8, 8, 8, 8).max((1, 3))[patches].min() > 0


def test_captions_and_questions_are_true_and_in_the_vocabulary():
    clip, tokenizer = moving_clip(9, combination=("cyan", "ring", "up")), tiny_text_tokenizer()
    assert clip.caption == f"a {clip.thing.size} cyan ring moves up"
    answers = {kind: clip.ask(kind)[1] for kind in (*QUESTIONS, "choice")}
    assert answers["shape"] == "ring" and answers["colour"] == "cyan" and answers["direction"] == "up"
    assert clip.ask("choice") == (QUESTIONS["upright"], "up")
    texts = [clip.caption, *QUESTIONS.values(), *ANSWERS]
    assert all(tokenizer.unk_token_id not in tokenizer(text).input_ids for text in texts)
    assert all(len(tokenizer(answer, add_special_tokens=False).input_ids) == 1 for answer in ANSWERS)


def test_meaning_stays_when_texture_changes():
    seed = Split("test").seed(0)
    plain, checked = (moving_clip(seed, MovingConfig(textures=(word,), pairs="all")) for word in ("plain", "checked"))
    assert plain.caption == checked.caption and np.array_equal(plain.covered(8), checked.covered(8))
    assert not np.array_equal(plain.frames, checked.frames)


def test_wrong_settings_are_said():
    with pytest.raises(ValueError, match="at least 2 frames"):
        MovingConfig(num_frames=1)
    with pytest.raises(ValueError, match="textures must be some of"):
        MovingConfig(textures=("fluffy",))
    with pytest.raises(ValueError, match="pairs must be"):
        combinations("none")
