"""Flat ids for language models and back."""

import pytest
import torch

from mm.codecs.semanticodec.language import TokenVocabulary


def pairs(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(size, (count,), generator=generator) for size in (64, 16)], dim=1)


@pytest.mark.parametrize("delay", [0, 1, 5])
def test_round_trip_of_rows_of_any_length(delay):
    vocabulary = TokenVocabulary(semantic=64, acoustic=16, delay=delay)
    tokens = torch.nn.utils.rnn.pad_sequence([pairs(9), pairs(0), pairs(4, 1)], batch_first=True, padding_value=-1)
    ids = vocabulary.flatten(tokens)
    assert ids.shape == (3, 2 + 2 * (9 + delay)) and ids.max() < vocabulary.size
    assert torch.equal(vocabulary.unflatten(ids), tokens)


def test_order_and_offsets():
    tokens = torch.tensor([[[5, 2], [6, 3]]])
    assert TokenVocabulary(semantic=64, acoustic=16).flatten(tokens).tolist() == [[1, 8, 69, 9, 70, 2]]
    assert TokenVocabulary(semantic=64, acoustic=16, delay=1).flatten(tokens).tolist() == [[1, 8, 0, 9, 69, 0, 70, 2]]


@pytest.mark.parametrize(
    "ids, message",
    [
        ([8, 69, 2], "must start with the begin id"),
        ([1, 8, 69], "hold the end id"),
        ([1, 8, 2], "ends inside a pair"),
        ([1, 69, 8, 2], "row 0, pair 0: an id of the wrong kind"),
        ([1, 8, 69, 0, 70, 2], "row 0, pair 1"),
    ],
)
def test_broken_streams_are_refused(ids, message):
    with pytest.raises(ValueError, match=message):
        TokenVocabulary(semantic=64, acoustic=16).unflatten(torch.tensor([ids]))


def test_tokens_outside_are_refused():
    with pytest.raises(ValueError, match=r"acoustic tokens must lie in 0\.\.15"):
        TokenVocabulary(semantic=64, acoustic=16).flatten(torch.tensor([[[5, 16]]]))
