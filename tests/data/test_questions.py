from collections import Counter

import numpy as np
import pytest

from mm.data.questions import FORMS, MAKERS, ask, detail_sample, scene_sample
from mm.data.scenes import HELD_OUT_PAIRS, Scene, SceneConfig, Thing, render, sample_scene
from mm.data.split import Split
from mm.data.tiles import QUARTERS, TileConfig, tile_sample

SCENE = Scene(
    things=(
        Thing(shape="circle", colour="red", size="small", texture="striped", x=0.2, y=0.5, mark=7),
        Thing(shape="square", colour="red", size="large", texture="plain", x=0.8, y=0.5, mark=3),
        Thing(shape="square", colour="blue", size="large", texture="dotted", x=0.5, y=0.9, mark=0),
    ),
    ground="sand",
)
TRUTH = {
    "colour": {"circle": "red"},
    "shape": {"blue": "square"},
    "texture": {"red circle": "striped", "red square": "plain", "blue square": "dotted"},
    "size": {"red circle": "small", "red square": "large", "blue square": "large"},
    "place": {"red circle": "middle left", "red square": "middle right", "blue square": "bottom middle"},
    "digit": {"red circle": "seven", "red square": "three", "blue square": "zero"},
    "count": {"": "three"},
    "background": {"": "sand"},
}


@pytest.mark.parametrize("kind", sorted(TRUTH))
@pytest.mark.parametrize("phrasing", ["seen", "held_out"])
def test_answers_are_true_and_unambiguous_things_are_all_asked_about(kind, phrasing):
    form = FORMS[kind][phrasing == "held_out"]
    seen = set()
    for seed in range(60):
        question = ask(SCENE, seed, kinds=[kind], phrasing=phrasing)
        subject = next(
            name for name in TRUTH[kind] if form.format(name=name, shape=name, colour=name) == question.question
        )
        assert question.answer == TRUTH[kind][subject]
        seen.add(subject)
    assert seen == set(TRUTH[kind])


def test_counts_of_colours_and_shapes():
    words = {"red": "two", "blue": "one", "square": "two", "circle": "one"}
    for seed in range(80):
        question = ask(SCENE, seed, kinds=["count_colour", "count_shape"], phrasing="seen")
        subject = question.question.removesuffix(" are there?").removesuffix(" things").split()[-1]
        assert question.answer == words.get(subject, "zero")


@pytest.mark.parametrize("kind, yes_if_there", [("exists", "yes"), ("absent", "no")])
def test_existence_and_negation(kind, yes_if_there):
    names = {thing.name for thing in SCENE.things}
    for seed in range(60):
        question = ask(SCENE, seed, kinds=[kind], phrasing="seen")
        there = " ".join(question.question.removesuffix("?").split()[-2:]) in names
        assert (question.answer == yes_if_there) == there


def test_relations_are_true():
    places = {thing.name: (thing.x, thing.y) for thing in SCENE.things}
    signs = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
    for seed in range(80):
        question = ask(SCENE, seed, kinds=["relation"], phrasing="seen")
        words = question.question.removesuffix("?")
        side = next(side for side in signs if f" {side} " in words)
        thing, other = words.removeprefix("is the ").split(f" {side} the ")
        axis, sign = signs[side]
        assert (question.answer == "yes") == (sign * (places[thing][axis] - places[other][axis]) > 0)


@pytest.mark.parametrize("kind", ["exists", "absent", "relation"])
def test_yes_and_no_are_exactly_balanced(kind):
    config = SceneConfig(min_things=2)
    answers = [scene_sample(seed, config, size=8, kinds=[kind]).answer for seed in range(200)]
    assert Counter(answers) == {"yes": 100, "no": 100}


def test_names_in_no_questions_are_no_giveaway():
    config = SceneConfig(pairs="seen", min_things=1, max_things=3)
    held_out = {f"{colour} {shape}" for shape, colour in HELD_OUT_PAIRS}
    asked = Counter()
    for seed in range(600):
        sample = scene_sample(seed, config, size=8, kinds=["exists"])
        name = " ".join(sample.question.removesuffix("?").split()[-2:])
        assert name not in held_out
        asked[name.split()[0], sample.answer] += 1
    for colour in {colour for colour, _ in asked}:
        yes, no = asked[colour, "yes"], asked[colour, "no"]
        assert 0.25 < yes / (yes + no) < 0.75


def test_paraphrases_are_split():
    seen, held_out = (
        {ask(SCENE, seed, kinds=["count"], phrasing=phrasing).question for seed in range(20)}
        for phrasing in ("seen", "held_out")
    )
    assert seen and held_out and not seen & held_out


def test_easy_and_hard_questions_stand_on_identical_pictures():
    start = Split("test").seed(0)
    levels = []
    for seed in range(start, start + 20, 2):
        easy, hard = detail_sample(seed), detail_sample(seed + 1)
        np.testing.assert_array_equal(easy.images[0], hard.images[0])
        assert easy.images[0].shape == (112, 112, 3)
        levels.append((easy.meta["level"], hard.meta["level"]))
    assert set(levels) == {("easy", "hard")}
    assert not np.array_equal(detail_sample(start).images[0], detail_sample(start + 2).images[0])


def test_hard_answers_are_spread():
    config = SceneConfig(marks=True, max_things=1)
    for kind, classes in (("digit", 10), ("colour", 8), ("place", 9)):
        counts = Counter(ask(sample_scene(seed, config), seed, kinds=[kind]).answer for seed in range(400))
        assert len(counts) == classes and max(counts.values()) < 1.6 / classes * 400


def test_a_kind_that_does_not_fit_gives_way_or_is_named():
    alone = Scene(things=(Thing(shape="star", colour="red"),))
    assert ask(alone, 0, kinds=["relation", "count"]).kind == "count"
    with pytest.raises(ValueError, match="none of the questions relation fits"):
        ask(alone, 0, kinds=["relation"])
    with pytest.raises(ValueError, match="smell"):
        ask(alone, 0, kinds=["smell"])
    with pytest.raises(ValueError, match="phrasing must be"):
        ask(alone, 0, phrasing="poetic")
    with pytest.raises(ValueError, match="marks=True"):
        detail_sample(0, SceneConfig())


def test_every_kind_has_a_maker_and_a_held_out_wording():
    assert MAKERS.keys() == FORMS.keys()
    assert all(len(forms) >= 2 for forms in FORMS.values())


def test_picture_of_a_sample_is_its_scene():
    config = SceneConfig(pairs="held_out")
    sample = scene_sample(9, config, size=48)
    np.testing.assert_array_equal(sample.images[0], render(sample_scene(9, config), 48))


def test_tiles_are_the_same_set_for_every_answer():
    for seed in range(12):
        samples = [tile_sample(seed, quarter=quarter) for quarter in range(4)]
        sets = [sorted(image.tobytes() for image in sample.images) for sample in samples]
        assert all(tiles == sets[0] for tiles in sets) and len(set(sets[0])) == 2
        assert [sample.answer for sample in samples] == list(QUARTERS)
        assert len({sample.question for sample in samples}) == 1


def test_the_answer_names_the_tile_with_the_thing():
    sample = tile_sample(4, TileConfig(size=24))
    different = [i for i, image in enumerate(sample.images) if sum((image != o).any() for o in sample.images) == 3]
    assert [QUARTERS[i] for i in different] == [sample.answer]
    assert {image.shape for image in sample.images} == {(24, 24, 3)}


def test_quarters_are_exactly_balanced():
    assert Counter(tile_sample(seed).answer for seed in range(40)) == dict.fromkeys(QUARTERS, 10)


def test_earlier_turns_are_questions_about_the_same_scene():
    one, four = (scene_sample(11, kinds=["colour", "shape", "place"], turns=turns) for turns in (1, 4))
    assert (one.question, one.answer) == (four.question, four.answer)
    assert len(four.meta["history"]) == 3 and "history" not in one.meta
    truths = {word for thing in sample_scene(11).things for word in (thing.colour, thing.shape, thing.place)}
    assert {answer for _, answer in four.meta["history"]} <= truths
    asked = {pair for seed in range(20) for pair in scene_sample(seed, kinds=["place"], turns=3).meta["history"]}
    assert len(asked) > 10
