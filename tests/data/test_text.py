import re

import numpy as np
import pytest

from mm.data.lookups import encode, split_words
from mm.data.text import DOCUMENTS, TextConfig, answer_mask, corpus, document, text_batch, tiny_tokenizer
from mm.data.tokenizer import IMAGE_TOKEN_ID
from mm.data.words import TAGS, VOCABULARY


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def only(kind, **options):
    return TextConfig(kinds=(kind,), weights=(1.0,), **options)


def test_vocabulary_is_small_and_without_repeats(tokenizer):
    assert len(VOCABULARY) == len(set(VOCABULARY)) == len(tokenizer) < 2048
    assert all(tokenizer.convert_tokens_to_ids(word) == index for index, word in enumerate(VOCABULARY))


def test_special_tokens_have_the_ids_that_models_rely_on(tokenizer):
    ids = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert ids == (0, 1, 2, 3)
    assert tokenizer.image_token_id == IMAGE_TOKEN_ID == 4


def test_case_and_blanks_do_not_matter_and_punctuation_is_split_off(tokenizer):
    assert tokenizer("Row 3 col 5 ?").input_ids == tokenizer("row 3  col 5?").input_ids
    assert tokenizer.tokenize("is it red, or blue?") == ["is", "it", "red", ",", "or", "blue", "?"]


def test_decoding_is_clean(tokenizer):
    text = "question: what colour is the circle? answer: red. row 3, col 5: seven; no!"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_mark_up_of_models_survives_skipping_special_tokens(tokenizer):
    text = " ".join(TAGS)
    assert tokenizer.decode(tokenizer(f"<image> {text}").input_ids, skip_special_tokens=True) == text


def test_tokenizer_survives_saving(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "<image> question: row 3 col 5? answer: seven<eos> <think> zoom"
    assert again(text).input_ids == tokenizer(text).input_ids
    assert again.decode(again(text).input_ids) == tokenizer.decode(tokenizer(text).input_ids)
    assert again.image_token == "<image>" and again.chat_template == tokenizer.chat_template


def test_chat_template_writes_the_form_of_the_corpus(tokenizer):
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "row 1 col 2?"}]},
        {"role": "assistant", "content": "four"},
        {"role": "user", "content": "row 3 col 4?"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<bos><image> question: row 1 col 2? answer: four<eos> question: row 3 col 4? answer:"


@pytest.mark.parametrize("kind", sorted(DOCUMENTS))
@pytest.mark.parametrize("length", [64, 130, 512])
def test_documents_fit_end_with_eos_and_are_known_words(kind, length, tokenizer):
    for seed in range(60):
        ids = document(seed, length, only(kind))
        assert len(ids) <= length and ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
        assert tokenizer.unk_token_id not in ids


@pytest.mark.parametrize("kind", sorted(DOCUMENTS))
def test_text_of_a_document_gives_its_ids_again(kind, tokenizer):
    for seed, text in enumerate(corpus(0, 30, config=only(kind))):
        ids = document(seed, 512, only(kind)).tolist()
        assert tokenizer(text).input_ids == ids
        assert [1, *encode(text).tolist()] == ids


def check_answers(text, facts):
    turns = re.findall(r"question: row (\d) col (\d)\? answer: (\w+)<eos>", text)
    assert turns
    for row, col, word in turns:
        assert facts[int(row), int(col)] == word
    assert len({turn[:2] for turn in turns}) == len(turns)


def test_facts_answer_their_questions():
    counts = []
    for text in corpus(0, 80, config=only("facts")):
        stated = text.split(" question:")[0]
        found = re.findall(r"row (\d) col (\d)(?: is| holds)? (\w+)\.", stated)
        turned = [(r, c, w) for w, r, c in re.findall(r"(\w+) is at row (\d) col (\d)\.", stated)]
        facts = {(int(row), int(col)): word for row, col, word in (turned or found)}
        assert len(facts) == stated.count(".")
        check_answers(text, facts)
        counts.append(len(facts))
    assert min(counts) <= 4 and max(counts) >= 56


def test_grid_answers_by_reading_order():
    sides = set()
    for text in corpus(0, 60, config=only("grid")):
        words = text.split(" question:")[0].split()
        side = int(len(words) ** 0.5)
        assert side * side == len(words)
        check_answers(text, {(i // side + 1, i % side + 1): word for i, word in enumerate(words)})
        sides.add(side)
    assert 8 in sides and min(sides) <= 2


def test_table_answers_by_row_name():
    for text in corpus(0, 60, config=only("table")):
        rows = re.findall(r"row (\d): ([^.]+)\.", text.split(" question:")[0])
        facts = {(int(row), col): word for row, words in rows for col, word in enumerate(words.split(), 1)}
        check_answers(text, facts)


def test_moves_are_answered_by_first_and_last_place():
    answers = []
    for text in corpus(0, 60, config=only("moves")):
        stated, turn = text.split(" question:")
        axis, places = re.findall(r"(row|col) \d", stated)[0], re.findall(r"(?:row|col) (\d)", stated)
        answer = turn.split("answer: ")[1].removesuffix("<eos>")
        forward = int(places[-1]) > int(places[0])
        assert answer == {"col": ("left", "right"), "row": ("up", "down")}[axis][forward]
        assert answer in turn.split("answer:")[0]
        answers.append(answer)
    assert set(answers) == {"left", "right", "up", "down"}


def test_batches_continue_each_other_and_pad_on_the_right():
    whole, labels = text_batch(10, 4, 128)
    later, _ = text_batch(12, 2, 128)
    np.testing.assert_array_equal(whole[2:], later)
    np.testing.assert_array_equal(labels, np.where(whole == 0, -100, whole))
    assert (whole[:, 0] == 1).all()


def test_loss_on_answers_keeps_exactly_answers_and_their_end(tokenizer):
    input_ids, labels = text_batch(0, 20, 200, TextConfig(loss_on="answers"))
    for row, kept in zip(input_ids, labels, strict=True):
        text = tokenizer.decode(row[row != 0])
        expected = [
            word
            for answer in re.findall(r"answer: ([^<]+)<eos>", text.replace(" <eos>", "<eos>"))
            for word in [*answer.split(), "<eos>"]
        ]
        assert tokenizer.convert_ids_to_tokens(kept[kept != -100]) == expected


def test_answer_mask_keeps_answers_of_several_words(tokenizer):
    ids = np.array(tokenizer("where? answer: top left<eos> question: a? answer: yes<eos> the").input_ids)
    words = tokenizer.convert_ids_to_tokens(ids[answer_mask(ids)])
    assert words == ["top", "left", "<eos>", "yes", "<eos>"]


def test_unknown_word_is_named():
    with pytest.raises(ValueError, match="rhinoceros"):
        encode("the rhinoceros is red.")
    assert split_words("A cell, row 1?") == ["a", "cell", ",", "row", "1", "?"]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"kinds": ("poems",), "weights": (1.0,)}, "kinds must be some of"),
        ({"weights": (1.0,)}, "weights must be"),
        ({"loss_on": "nothing"}, "loss_on"),
    ],
)
def test_wrong_config_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        TextConfig(**wrong)


def test_too_short_a_row_is_refused():
    with pytest.raises(ValueError, match="at least 64 tokens"):
        text_batch(0, 1, 32)
