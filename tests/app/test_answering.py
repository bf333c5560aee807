"""Requests of a benchmark: the same answers at any batch size, and scores that are log-probabilities of the answer."""

import logging

import numpy as np
import pytest
import torch

import mm
from mm.app.answering import Answerer, Request, cut, from_context, from_messages, generation_options, load_answerer


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)


QUESTIONS = ["what is in row 3 col 5?", "is it red?", "what digit is on the large red circle?"]
IMAGES = [[picture(0)], [], [picture(1), picture(2)]]


@pytest.fixture(scope="module", params=["llava_tiny", "lavi_tiny"])
def model(request):
    return mm.create_model(request.param, width=32, depth=2)


def requests(**options):
    return [from_context(text, images, options) for text, images in zip(QUESTIONS, IMAGES, strict=True)]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_answers_are_those_of_ask_in_the_order_of_the_requests(model, batch_size):
    short, long = requests(max_new_tokens=2), requests(max_new_tokens=5)
    mixed = [long[0], short[1], long[2], short[0], long[1]]
    expected = [model.ask(r.images, r.messages, max_new_tokens=r.options["max_new_tokens"]) for r in mixed]
    assert len(set(expected)) > 1
    assert Answerer(model, batch_size).answer(mixed) == expected


def test_pictures_in_front_are_placed_as_ask_places_them(model):
    content = [{"type": "image", "url": picture(0)}, {"type": "text", "text": QUESTIONS[0]}]
    chat = from_messages([{"role": "user", "content": content}], {"max_new_tokens": 4})
    plain = from_context(QUESTIONS[0], [picture(0)], {"max_new_tokens": 4})
    for request in (chat, plain):
        batch, asked = (model.prepare(request.images, words) for words in (request.messages, QUESTIONS[0]))
        assert torch.equal(batch["input_ids"], asked["input_ids"])
    assert len(chat.images) == len(plain.images) == 1


def test_marked_pictures_stay_where_they_are():
    request = from_context("is <image> like <image>?", [picture(0), picture(1)], {})
    kinds = [part["type"] for part in request.messages[0]["content"]]
    assert kinds == ["text", "image", "text", "image", "text"]
    later = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]
    later += [{"role": "user", "content": [{"type": "image", "url": 1}, {"type": "text", "text": "and this?"}]}]
    assert [part["type"] for part in from_messages(later, {}).messages[2]["content"]] == ["image", "text"]


@torch.no_grad()
def stepwise(model, request, target):
    """Log-probability of `target`, one token after the other, and whether each is the likeliest."""
    batch = model.prepare(request.images, request.messages)
    total, greedy = 0.0, True
    for token in model.processor.tokenizer(target, add_special_tokens=False).input_ids:
        scores = model(**batch).logits[0, -1].log_softmax(-1)
        total, greedy = total + float(scores[token]), greedy and int(scores.argmax()) == token
        batch["input_ids"] = torch.cat([batch["input_ids"], torch.tensor([[token]])], dim=1)
        batch["attention_mask"] = torch.cat([batch["attention_mask"], torch.ones(1, 1, dtype=torch.long)], dim=1)
    return total, greedy


@pytest.mark.parametrize("batch_size", [1, 3])
def test_scores_are_those_of_a_loop_over_the_target(model, batch_size):
    asked = requests()
    likeliest = model.ask(asked[0].images, asked[0].messages, max_new_tokens=1)
    targets = [likeliest, "seven", "large red"]
    found = Answerer(model, batch_size).score(asked, targets)
    for request, target, (score, greedy) in zip(asked, targets, found, strict=True):
        expected = stepwise(model, request, target)
        assert score == pytest.approx(expected[0], abs=1e-3) and greedy == expected[1]
    assert found[0][1]


class LikeHuggingFace:
    """Decodes itself; its processor holds no `decode` of ours."""

    def __init__(self, model):
        self.model = model
        self.prepare, self.generate = model.prepare, model.generate
        self.decode = model.processor.decode

    def eval(self):
        return self


def test_a_model_that_decodes_itself_is_asked_to(model):
    asked = requests(max_new_tokens=3)
    assert Answerer(LikeHuggingFace(model), 2).answer(asked) == Answerer(model, 2).answer(asked)


def test_options_of_tasks():
    assert generation_options({}) == ({"max_new_tokens": 128, "do_sample": False}, [])
    greedy = {"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "num_beams": 2, "do_sample": False, "until": "\n"}
    assert generation_options(greedy) == ({"max_new_tokens": 16, "num_beams": 2, "do_sample": False}, ["\n"])
    sampled, _ = generation_options({"temperature": 0.7, "top_p": None, "until": ["", "x"]})
    assert sampled == {"max_new_tokens": 128, "temperature": 0.7, "do_sample": True}
    assert not generation_options({"do_sample": True, "temperature": 0})[0]["do_sample"]
    with pytest.raises(ValueError, match="until must be a text or a list of texts, got 3"):
        generation_options({"until": 3})


def test_options_without_effect_are_logged(caplog):
    with caplog.at_level(logging.WARNING, logger="mm.app.answering"):
        generation_options({"max_new_tokens": 3, "image_aspect_ratio": "pad"})
    assert "without effect here: image_aspect_ratio" in caplog.text


def test_answers_end_at_the_first_stop():
    assert cut(" five; six\n seven", ["\n", ";"]) == "five"
    assert cut(" five ", []) == "five"


def test_stops_reach_the_answers(model):
    (whole,) = Answerer(model).answer(requests(max_new_tokens=4)[:1])
    stop = whole[-1]
    (short,) = Answerer(model).answer(requests(max_new_tokens=4, until=[stop])[:1])
    assert short == whole[: whole.index(stop)].strip() != whole


def test_what_cannot_be_answered_is_said(tmp_path):
    with pytest.raises(ValueError, match="a TowerBase does not answer questions"):
        Answerer(mm.create_model("tiny_vit", depth=1))
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        Answerer(LikeHuggingFace(mm.create_model("llava_tiny", width=32, depth=1)), 0)
    with pytest.raises(ValueError, match="video input"):
        from_messages([{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}], {})
    with pytest.raises(ValueError, match="gives paths"):
        from_context("what?", ["a.mp4"], {})
    with pytest.raises(ValueError, match="dtype must be one of"):
        load_answerer("tiny_vit", dtype="int4")
    with pytest.raises(ValueError, match="batch_size must be a number, got 'auto'"):
        load_answerer("tiny_vit", batch_size="auto")
    with pytest.raises(FileNotFoundError, match="did you mean lavi_tiny"):
        load_answerer("lavi_tny")


def test_no_requests_no_answers(model):
    assert Answerer(model).answer([]) == [] and Answerer(model).score([], []) == []
    assert Request([]).images == []
