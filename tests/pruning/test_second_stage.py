"""FlowCut's cut inside the language model, against plain loops."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mm.pruning.llm_stage import Prompt, keep_best, picture_sizes
from mm.pruning.llm_state import leave, question_column, sum_groups
from mm.pruning.second_stage import question_flow

HEADS, GROUPS, LENGTH, CHANNELS = 4, 2, 12, 6
PICTURE = [-1, 0, 0, 0, -1, 1, 1, 1, 1, -1, -1, -1]


class FakeBlock(SimpleNamespace):
    """Given queries, keys and values in the place of a decoder block."""

    def heads(self, rows):
        return self.query, self.key, self.value, CHANNELS**-0.5


@pytest.fixture
def block():
    generator = torch.Generator().manual_seed(7)
    shape = {"query": (1, HEADS, 1, CHANNELS), "key": (1, GROUPS, LENGTH, CHANNELS)}
    shape["value"] = shape["key"]
    return FakeBlock(**{name: torch.randn(size, generator=generator) for name, size in shape.items()})


def prompt_of(picture=PICTURE, question=LENGTH - 1):
    picture = torch.tensor([picture])
    return Prompt(picture, torch.ones_like(picture, dtype=torch.bool), torch.tensor([question]), int(picture.max()) + 1)


def softmax(row):
    grown = np.exp(row - np.max(row))
    return grown / grown.sum()


def test_score_oracle(block):
    """Each picture has its own softmax; keys and values of a group count once per query head."""
    found = question_flow(block, prompt_of())[0].numpy()
    q, k, v = (tensor[0].numpy() for tensor in (block.query, block.key, block.value))
    expected = np.zeros(LENGTH)
    for picture in (0, 1):
        span = [j for j, number in enumerate(PICTURE) if number == picture]
        relation, semantic = np.zeros(len(span)), np.zeros(len(span))
        for h in range(HEADS):
            g = h // (HEADS // GROUPS)
            relation += softmax(np.array([q[h, 0] @ k[g, j] for j in span]) / math.sqrt(CHANNELS)) / HEADS
            semantic += softmax(np.array([v[g, LENGTH - 1] @ v[g, j] for j in span]) / math.sqrt(CHANNELS)) / HEADS
        for place, j in enumerate(span):
            expected[j] = (relation[place] + semantic[place]) * np.abs(v[:, j].mean(axis=0)).sum()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_pictures_do_not_compete(block):
    """Louder keys of one picture leave the scores of the other as they are."""
    before = question_flow(block, prompt_of())
    louder = FakeBlock(**{**vars(block), "key": block.key.clone()})
    louder.key[:, :, 5:9] *= 5
    after = question_flow(louder, prompt_of())
    torch.testing.assert_close(before[:, 1:4], after[:, 1:4])
    assert not torch.allclose(before[:, 5:9], after[:, 5:9])


def test_best_of_each_picture_and_all_text():
    scores = torch.tensor([[9.0, 1, 3, 3, 9, 4, 8, 8, 1, 0, 0, 0]])
    keep = keep_best(scores, prompt_of(), torch.tensor([[1, 2]]))
    assert keep[0].nonzero()[:, 0].tolist() == [0, 2, 4, 6, 7, 9, 10, 11]
    assert picture_sizes(prompt_of()).tolist() == [[3, 4]]


def test_guide_is_the_last_instruction_token():
    real = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]).bool()
    labels = torch.full((2, 6), -100)
    assert question_column(real, None).tolist() == [5, 3]
    labels[0, 4:] = 7
    assert question_column(real, labels).tolist() == [3, 3]


def test_rows_that_lose_different_numbers_stay_right_aligned():
    prompt = prompt_of()
    two = Prompt(prompt.picture.repeat(2, 1), prompt.real.repeat(2, 1), torch.tensor([LENGTH - 1] * 2), prompt.pictures)
    keep = torch.ones(2, LENGTH, dtype=torch.bool)
    keep[0, 1] = keep[1, 5] = keep[1, 6] = False
    now = SimpleNamespace(behind=[])
    behind = leave(now, two, SimpleNamespace(keep=keep))
    assert behind.columns.shape == (2, 11) and behind.chosen.tolist()[1][:2] == [False, True]
    assert behind.prompt.question.tolist() == [10, 10] and behind.dropped.tolist() == [1, 2]
    assert behind.lost_before[0].tolist() == [0] + [1] * 10
    assert behind.lost_before[1, 1:].tolist() == [0] * 5 + [2] * 5


def test_groups_are_summed_where_they_live_on():
    hidden = torch.arange(8.0).view(1, 4, 2)
    home = torch.tensor([[-1, 1, 1, -1]])
    assert sum_groups(hidden, home)[0].tolist() == [[0, 1], [6, 8], [4, 5], [6, 7]]
