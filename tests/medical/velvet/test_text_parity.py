"""Sentence splitting and tokens against the published preparation, exactly."""

from __future__ import annotations

import json

import pytest

from mm.medical.velvet.sentences import split_sentences
from mm.medical.velvet.tokenizer import SentenceTokenizer
from tests.medical.velvet.conftest import DATA

CASES = json.loads((DATA / "velvet_text.json").read_text())


@pytest.mark.parametrize("case", CASES["splitting"], ids=range(len(CASES["splitting"])))
def test_published_splitting(case):
    assert split_sentences(case["text"], style="published") == case["sentences"]


def tokenizer(**options):
    limits = CASES["limits"]
    return SentenceTokenizer(
        CASES["vocabulary"],
        max_sentences=limits["max_num_sentences"],
        max_sentence_tokens=limits["max_len_sentence"],
        max_tokens=limits["max_len_report"],
        **options,
    )


@pytest.mark.parametrize("case", CASES["reports"], ids=range(len(CASES["reports"])))
@pytest.mark.parametrize("plain", [False, True])
def test_tokens(case, plain):
    expected = case["plain"] if plain else case
    batch = tokenizer(sentence_modeling=not plain)([case["sentences"]], length=CASES["limits"]["max_len_report"])
    assert batch.input_ids[0].tolist() == expected["input_ids"]
    assert batch.token_type_ids[0].tolist() == expected["token_type_ids"]
    assert batch.attention_mask[0].int().tolist() == expected["attention_mask"]


def test_special_ids():
    built, special = tokenizer(), CASES["special"]
    found = (built.pad_id, built.unk_id, built.cls_id, built.sep_id, built.mask_id, len(built.vocabulary))
    assert found == tuple(special[name] for name in ("pad", "unk", "cls", "sep", "mask", "first_sentence"))


def test_clean_splitting_keeps_decimals_and_drops_lone_marks():
    text = "Title: CT. A 3.5 cm cyst...\nnoted!? Free\xa0fluid"
    assert split_sentences(text) == ["CT.", "A 3.5 cm cyst...", "noted!?", "Free fluid"]
