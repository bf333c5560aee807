"""The whole model: leaks, padding, chunks, answers, files, any grid."""

from __future__ import annotations

import pytest
import torch

from mm.encoders.evilm import EViLM

TEXTS = ["a red circle", "is it a large blue star?", "green"]


@pytest.mark.parametrize("fill", ["mean", "black", "learned"])
def test_hidden_pixels_change_no_logit(build, fill):
    model = build(mask_fill=fill)
    frames, words = torch.rand(1, 3, 3, 70, 64), model.tokenize(TEXTS[:1])
    keep = torch.ones(1, 3, 3, 2, dtype=torch.bool)
    keep[0, 1, 0, 1] = keep[0, 2, 2, 0] = False
    other = frames.clone()
    other[0, 1, :, :32, 32:] = torch.rand(3, 32, 32)
    other[0, 2, :, 64:, :32] = 1.0
    with torch.no_grad():
        ours, theirs = model(frames, **words, mask=keep), model(other, **words, mask=keep)
        shown = model(other, **words)
    for a, b, c in zip(ours, theirs, shown, strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c)


def test_padding_and_batch_mates_change_nothing(model):
    frames = torch.rand(3, 2, 3, 64, 64)
    words = model.tokenize(TEXTS)
    assert not words["attention_mask"].all()
    padded = {name: torch.nn.functional.pad(value, (0, 9)) for name, value in words.items()}
    with torch.no_grad():
        together, longer = model(frames, **words), model(frames, **padded)
        alone = [model(frames[i : i + 1], **model.tokenize([text])) for i, text in enumerate(TEXTS)]
    torch.testing.assert_close(longer.matching, together.matching, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(longer.words[:, :-9], together.words, rtol=1e-4, atol=1e-4)
    for row, single in enumerate(alone):
        count = single.words.shape[1]
        torch.testing.assert_close(together.matching[row], single.matching[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(together.words[row, :count], single.words[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together.codes[row], single.codes[0], rtol=1e-4, atol=1e-4)


def test_scores_do_not_depend_on_the_chunk_size(model):
    with torch.no_grad():
        video, text = model.encode_video(torch.rand(4, 2, 3, 64, 64)), model.encode_text(**model.tokenize(TEXTS))
        scores = model.score_all(video, text, chunk_size=5)
        assert scores.shape == (4, 3) and scores.std() > 0
        torch.testing.assert_close(scores, model.score_all(video, text, chunk_size=100), rtol=1e-5, atol=1e-5)
        pair = model.score(video.rows(torch.tensor([2])), text.rows(torch.tensor([1])))
    torch.testing.assert_close(scores[2, 1], pair[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["full", "seq2seq", "video_self"])
def test_fusion_masks_let_see_what_they_say(build, kind):
    model = build(fusion_mask=kind, fusion_layers=2)
    frames = torch.rand(1, 2, 3, 32, 32)
    ids = model.tokenize(["a red circle"])["input_ids"]
    changed = ids.clone()
    changed[0, -2] = model.tokenizer.convert_tokens_to_ids("blue")
    with torch.no_grad():
        video = model.encode_video(frames)
        model.text_layers.forward = lambda x, mask: x  # these are bidirectional and would carry the change everywhere
        one, two = (model.fuse(video, model.encode_text(words)) for words in (ids, changed))
    assert torch.equal(one.cells, two.cells) == (kind != "full")
    assert torch.equal(one.text[:, 0], two.text[:, 0]) == (kind == "seq2seq")


@pytest.mark.parametrize("shape", [(1, 32, 32), (8, 64, 32), (3, 65, 100)])
def test_any_number_of_frames_and_any_size(model, shape):
    count, height, width = shape
    with torch.no_grad():
        video = model.encode_video(torch.rand(1, count, 3, height, width))
        out = model(torch.rand(1, count, 3, height, width), **model.tokenize(TEXTS[:1]))
    cells = (-(-height // 32), -(-width // 32))
    assert video.grid == (count, *cells) and video.tokens.shape[1] == count * (1 + cells[0] * cells[1])
    assert out.codes.shape[:4] == (1, count, 2 * cells[0], 2 * cells[1])


def test_answers_come_from_the_list_best_first(build):
    model = build(answers=("red", "blue", "green"))
    found = model.answer(torch.rand(2, 3, 64, 64), "what colour is it?", top_k=3)
    assert {name for name, _ in found} == {"red", "blue", "green"}
    shares = [share for _, share in found]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1, abs=1e-5)
    with torch.no_grad():
        model.words.bias[model.tokenizer.convert_tokens_to_ids("blue")] += 50
    assert model.answer(torch.rand(2, 3, 64, 64), "what colour is it?")[0][0] == "blue"


def test_a_classifier_answers_with_phrases(build):
    model = build(answers=("a red ball", "nothing"), answer_head="classifier")
    with torch.no_grad():
        model.answers[3].bias[0] += 50
    assert model.answer(torch.rand(2, 3, 64, 64), "what is it?")[0][0] == "a red ball"


def test_answers_can_be_chosen_per_call(build):
    model = build(answers=("red", "blue"))
    clip = torch.rand(2, 3, 64, 64)
    assert {name for name, _ in model.answer(clip, "what is it?", 2, answers=["star", "circle"])} == {"star", "circle"}
    assert model.unanswerable(["red", "a red ball", "zeppelin"]) == ["a red ball", "zeppelin"]
    with pytest.raises(ValueError, match="'zeppelin'"):
        model.answer(clip, "what is it?", answers=["red", "zeppelin"])
    every = build(answers=())
    with torch.no_grad():  # a mark of the tokenizer is never an answer
        every.words.bias[every.tokenizer.mask_token_id] += 50
        every.words.bias[every.tokenizer.convert_tokens_to_ids("green")] += 40
    assert every.answer(clip, "what is it?")[0][0] == "green"
    listed = build(answers=("a red ball", "nothing"), answer_head="classifier")
    assert len(listed.answer(clip, "what?", 1, answers=["nothing"])) == 1
    with pytest.raises(ValueError, match="not in this model's list: 'red'; it has 2"):
        listed.answer(clip, "what?", answers=["red"])


def test_bytes_are_values_in_0_to_1(model):
    frames = torch.randint(0, 256, (1, 2, 3, 64, 64), dtype=torch.uint8)
    keep = torch.tensor([[[[True, False], [True, True]]] * 2])
    with torch.no_grad():
        for mask in (None, keep):
            ours, theirs = model.encode_video(frames, mask), model.encode_video(frames / 255, mask)
            torch.testing.assert_close(ours.tokens, theirs.tokens)


def test_unknown_words_are_named(model):
    assert model.unknown_words("a red Zeppelin, and a blimp") == ["Zeppelin", "blimp"]
    assert model.unknown_words("a red circle") == []


def test_wrong_input_is_said(build):
    model = build(answers=("red", "a red ball"), max_text_len=10)
    clip = torch.rand(2, 3, 64, 64)
    with pytest.raises(ValueError, match="'a red ball'"):
        model.answer(clip, "what is it?")
    with pytest.raises(ValueError, match="limit is 10"):
        model.tokenize(["red " * 20])
    assert model.tokenize(["red " * 20], truncate=True)["input_ids"].shape == (1, 10)
    with pytest.raises(ValueError, match=r"\(B, T, 3, H, W\)"):
        model.encode_video(clip)
    with pytest.raises(ValueError, match="no side empty"):
        model.encode_video(clip[None, :0])
    with pytest.raises(ValueError, match="mask must be bool"):
        model.encode_video(clip[None], torch.ones(1, 2, 3, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="no tokenizer"):
        EViLM(model.config).tokenize(["red"])


def test_the_tokenizer_travels_with_the_weights(model, tmp_path):
    loaded = EViLM.from_pretrained(model.save_pretrained(tmp_path / "m"))
    assert loaded.tokenizer(TEXTS[1]).input_ids == model.tokenizer(TEXTS[1]).input_ids


def test_received_attention_sums_to_queries_times_layers(model):
    video, text = model.encode_video(torch.rand(2, 2, 3, 64, 64)), model.encode_text(**model.tokenize(TEXTS[:2]))
    received = model.received_attention(video, text)
    places = video.tokens.shape[1] + text.tokens.shape[1]
    assert received.shape == (2, places)
    torch.testing.assert_close(received.sum(1), torch.full((2,), float(places * len(model.fusion))))
    assert (received[:, video.tokens.shape[1] :][~text.mask] == 0).all()
