import re

import pytest

from mm.data import captions, questions, tiles
from mm.data.boards import QUESTION, BoardConfig, board_sample
from mm.data.captions import clip_caption, long_caption, short_caption
from mm.data.frames import OPEN_QUESTION, QUESTIONS, ClipConfig, clip_sample, sample_clip
from mm.data.lookups import encode, split_words
from mm.data.questions import detail_sample, scene_sample
from mm.data.scenes import SceneConfig, sample_scene
from mm.data.tiles import tile_sample
from mm.data.tokenizer import tiny_tokenizer
from mm.data.words import DIRECTIONS, GROUND_PATTERNS, SHAPES, VOCABULARY

PHRASINGS = ("seen", "held_out")


@pytest.mark.parametrize("phrasing", PHRASINGS)
def test_a_long_caption_tells_everything(phrasing):
    for seed in range(60):
        scene = sample_scene(seed, SceneConfig(max_things=9))
        text = long_caption(scene, seed, phrasing=phrasing)
        sentences = text.rstrip(".").split(". ")
        for thing in scene.things:
            words = f"{thing.size} {thing.texture} {thing.colour} {thing.shape}"
            (sentence,) = [sentence for sentence in sentences if words in sentence]
            assert thing.place in sentence
        assert scene.ground in sentences[-1] and scene.pattern in sentences[-1]


@pytest.mark.parametrize("phrasing", PHRASINGS)
def test_relations_in_captions_are_true(phrasing):
    forms = [r"the (?P<a>\w+ \w+) is (?P<side>left of|right of|above|below) the (?P<b>\w+ \w+)\."]
    forms.append(r"(?P<side>left of|right of|above|below) the (?P<b>\w+ \w+) you can see the (?P<a>\w+ \w+)\.")
    checked = 0
    for seed in range(40):
        scene = sample_scene(seed, SceneConfig(min_things=2, max_things=5))
        named = {thing.name: thing for thing in scene.things}
        for form in forms:
            for match in re.finditer(form, long_caption(scene, seed, phrasing=phrasing)):
                assert match["side"] in questions.side_of(named[match["a"]], named[match["b"]])
                checked += 1
    assert checked > 20


def test_filler_comes_first_and_says_nothing():
    scenes = [sample_scene(seed) for seed in range(2)]
    texts = [long_caption(scene, 7, filler=150) for scene in scenes]
    heads = [" ".join(text.split()[:150]) for text in texts]
    assert heads[0] == heads[1] and texts[0] != texts[1]
    plain = long_caption(scenes[0], 7)
    assert not set(plain.split(". ")) & {sentence.rstrip(".") for sentence in captions.FILLER}


@pytest.mark.parametrize("phrasing", PHRASINGS)
def test_a_short_caption_names_every_thing(phrasing):
    for seed in range(30):
        scene = sample_scene(seed)
        text = short_caption(scene, seed, phrasing=phrasing)
        assert all(thing.name in text for thing in scene.things) and f"{scene.ground} background" in text
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text)


def test_paraphrases_of_captions_are_split():
    for write in (short_caption, long_caption):
        scene = sample_scene(3, SceneConfig(max_things=1))
        texts = [{write(scene, seed, phrasing=phrasing) for seed in range(60)} for phrasing in PHRASINGS]
        assert len(texts[0]) > 1 and not texts[0] & texts[1]


def test_clip_captions_tell_what_moves_where():
    config = ClipConfig(size=8, directions=DIRECTIONS, shapes=SHAPES, patterns=GROUND_PATTERNS)
    for seed in range(40):
        clip = sample_clip(seed, config)
        text = clip_caption(clip, seed)
        assert clip.thing.name in text and clip.direction in text.split()[3:] + text.rstrip(".").split()[-1:]
        assert clip.scenes[0].pattern in text and clip.scenes[0].ground in text


def every_form():
    lists = [captions.SHORT, captions.OPENINGS, captions.THINGS, captions.DIGIT_NOTES, captions.RELATIONS]
    lists += [captions.GROUNDS_FORMS, captions.FILLER, captions.CLIPS, captions.WAYS.values(), questions.SIDES]
    lists += [*questions.FORMS.values(), QUESTIONS.values(), tiles.QUARTERS, [QUESTION, OPEN_QUESTION, tiles.QUESTION]]
    return [form for forms in lists for form in forms]


def test_every_template_is_covered_by_the_vocabulary():
    for form in every_form():
        assert set(split_words(re.sub(r"\{\w+\}", " ", form))) <= set(VOCABULARY), form


def makers():
    marked = SceneConfig(marks=True)
    everything = ClipConfig(size=8, directions=DIRECTIONS, shapes=SHAPES, patterns=GROUND_PATTERNS)
    return {
        "boards": board_sample,
        "glyph boards": lambda seed: board_sample(seed, BoardConfig(symbols="glyphs")),
        "scenes": lambda seed: scene_sample(seed, size=8, phrasing="all"),
        "detail": lambda seed: detail_sample(seed, phrasing="all"),
        "clips": lambda seed: clip_sample(seed, everything),
        "tiles": tile_sample,
        "long captions": lambda seed: long_caption(sample_scene(seed, marked), seed, filler=20),
        "short captions": lambda seed: short_caption(sample_scene(seed), seed),
        "clip captions": lambda seed: clip_caption(sample_clip(seed, everything), seed),
    }


@pytest.mark.parametrize("name", sorted(makers()))
def test_every_generator_speaks_only_known_words(name):
    tokenizer = tiny_tokenizer()
    for seed in range(80):
        made = makers()[name](seed)
        for text in [made] if isinstance(made, str) else [made.question, made.answer]:
            ids = tokenizer(text, add_special_tokens=False).input_ids
            assert tokenizer.unk_token_id not in ids and ids == encode(text).tolist()
            assert tokenizer.decode(ids) == text
