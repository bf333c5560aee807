"""Documents in shorthand state every fact in one word and give right answers."""

from __future__ import annotations

import re

import numpy as np
import pytest

from mm.data.shorthand import SHORTHAND
from mm.data.tokenizer import tiny_tokenizer
from mm.data.words import DIGITS, PLACES

CELL = re.compile(rf"^([a-h])([1-8])({'|'.join(DIGITS)})$")
THING = re.compile(r"^([1-9])(red|orange|yellow|green|cyan|blue|purple|pink)([a-z]+)$")


def documents(kind: str, count: int = 40, budget: int = 127) -> list[str]:
    tokenizer = tiny_tokenizer()
    texts = []
    for seed in range(count):
        ids = SHORTHAND[kind](np.random.default_rng(seed), budget)
        assert len(ids) <= budget
        texts.append(tokenizer.decode(ids))
        assert tokenizer(texts[-1]).input_ids[1:] == ids.tolist()
    return texts


def turns(text: str) -> list[tuple[str, str]]:
    return re.findall(r"(?:question: (.*?)\? )?answer: (.*?) ?<eos>", text)


def test_board_answers_follow_from_the_stated_facts():
    kinds = set()
    for text in documents("board_shorthand"):
        facts = {m[1] + m[2]: m[3] for m in map(CELL.match, text.split()) if m}
        for question, answer in turns(text):
            if not question:
                cell, word = answer.split()
                assert facts[cell] == word
                kinds.add("read")
            elif found := re.fullmatch(r"cell ([a-h][1-8])", question):
                assert facts[found[1]] == answer
                kinds.add("cell")
            elif found := re.fullmatch(r"name of row (\d) col (\d)", question):
                assert answer == "abcdefgh"[int(found[2]) - 1] + found[1]
                kinds.add("name")
            else:
                found = re.fullmatch(r"row (\d) col (\d)", question)
                assert found and facts["abcdefgh"[int(found[2]) - 1] + found[1]] == answer
                kinds.add("spot")
    assert kinds == {"read", "cell", "name", "spot"}


def test_scene_answers_follow_from_the_stated_facts():
    for text in documents("scene_shorthand"):
        things = {m.groups() for m in map(THING.match, text.split()) if m}
        assert len({shape for *_, shape in things}) == len(things)  # so every question has one answer
        for question, answer in turns(text):
            named = [t for t in things if t[1] in question.split() or t[2] in question.split()]
            assert len(named) == 1
            assert answer in {PLACES[int(named[0][0]) - 1], named[0][1], named[0][2]}


@pytest.mark.parametrize("kind", SHORTHAND)
def test_a_document_depends_on_its_generator_alone(kind):
    first, again, other = (SHORTHAND[kind](np.random.default_rng(seed), 127).tolist() for seed in (3, 3, 4))
    assert first == again != other
