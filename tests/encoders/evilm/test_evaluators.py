"""Retrieval and answers on annotated videos: closed cases, protocols, what cannot be answered."""

from __future__ import annotations

import pytest
import torch

from mm.data.video_files import VideoFiles
from mm.encoders.evilm import evilm_tiny
from mm.encoders.evilm.annotations import VideoRow, read_rows
from mm.encoders.evilm.answering import answer_accuracy
from mm.encoders.evilm.retrieval import encode_rows, queries, ranks, retrieval


def row(video: str, *captions: str, question: str = "", answer: str = "") -> VideoRow:
    return VideoRow(place=f"row of {video}", video=video, captions=captions, question=question, answer=answer)


def test_ranks_of_a_table_worked_out_by_hand():
    scores = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 1.0, 1.0], [0.0, 5.0, 6.0]])
    right = torch.tensor([[1, 0, 0], [0, 0, 1], [1, 0, 0], [0, 1, 1]]).bool()  # places 1, 3, 3 (a tie), 1
    found = ranks("x", scores, right, ks=(1, 2, 3, 5))
    assert found == {"x_r1": 0.5, "x_r2": 0.5, "x_r3": 1.0, "x_median_rank": 3.0}


def test_protocols():
    several = row("x", "first", "second")
    assert [queries(several, kind) for kind in ("first", "all", "paragraph")] == [
        ("first",),
        ("first", "second"),
        ("first second",),
    ]
    with pytest.raises(ValueError, match="row of x: no caption"):
        queries(row("x"), "all")
    with pytest.raises(ValueError, match="captions must be one of"):
        queries(several, "some")


def score_by(monkeypatch, table: torch.Tensor) -> None:
    """Matching that is right by construction: (clip, text) scores come from a table."""

    def scores(self, video, text, pairs, *, chunk_size=32):
        return table[pairs[:, 0], pairs[:, 1]]

    monkeypatch.setattr("mm.encoders.evilm.model.EViLM.score_pairs", scores)


def test_retrieval_finds_what_the_scores_say(monkeypatch, clips):
    plain = evilm_tiny(embed_dim=8, contrastive_width=0)
    rows = [row("a", "red"), row("b", "blue", "green"), row("a", "small"), row("deep/c", "star")]
    found = encode_rows(plain, rows, VideoFiles(clips), num_frames=2, batch_size=2)
    assert [one.captions for one in found.rows] == [("red", "small"), ("blue", "green"), ("star",)]
    # texts: red, small (clip 0), blue, green (clip 1), star (clip 2); one text of clip 1 prefers clip 2
    table = torch.tensor([[9.0, 9, 0, 0, 0], [0, 0, 9, 1, 0], [0, 0, 0, 5, 9]])
    score_by(monkeypatch, table)
    result = retrieval(plain, found, "all")
    assert result["text_to_video_r1"] == pytest.approx(0.8) and result["video_to_text_r1"] == 1.0
    assert (result["clips"], result["texts"], result["text_to_video_median_rank"]) == (3, 5, 1.0)
    assert "text_to_video_r5" not in result and "cosine_text_to_video_r1" not in result
    score_by(monkeypatch, table[:, [0, 2, 4]])
    assert retrieval(plain, found, "first")["texts"] == 3


def test_reranked_retrieval_is_the_exhaustive_one_with_all_candidates(model, clips):
    rows = list(read_rows(clips))
    found = encode_rows(model, rows, VideoFiles(clips), num_frames=2)
    every, some = retrieval(model, found), retrieval(model, found, rerank_k=5)
    assert {name: every[name] for name in some} == some
    assert "video_to_text_r1" in every and "video_to_text_r1" not in some
    one = retrieval(model, found, rerank_k=1)
    assert one["text_to_video_r1"] == every["cosine_text_to_video_r1"]


def test_long_captions_are_cut_and_counted(clips):
    short = evilm_tiny(embed_dim=8, max_text_len=6)
    found = encode_rows(short, [row("a", "red " * 9), row("b", "blue")], VideoFiles(clips), num_frames=1)
    assert retrieval(short, found)["texts_cut"] == 1


def test_missing_and_damaged_videos(model, damaged):
    rows = [row("a", "red"), row("sound", "blue"), row("nowhere", "green"), row("cut", "grey")]
    with pytest.raises(ValueError, match=r"row of sound: .*holds no video"):
        encode_rows(model, rows, VideoFiles(damaged), num_frames=1)
    found = encode_rows(model, rows, VideoFiles(damaged), num_frames=1, skip_unreadable=True)
    assert [one.video for one in found.rows] == ["a", "cut"] and len(found.problems) == 3
    with pytest.raises(ValueError, match="none of 1 videos could be read"):
        encode_rows(model, rows[1:2], VideoFiles(damaged), num_frames=1, skip_unreadable=True)


QUESTIONS = [
    row("a", question="what colour is it?", answer="red"),
    row("a", question="is it?", answer="red"),
    row("b", question="what?", answer="blue"),
    row("b", question="what?", answer="a red ball"),
]


def test_accuracy_counts_what_cannot_be_answered_as_wrong(clips):
    model = evilm_tiny(embed_dim=8, answers=())
    with torch.no_grad():
        model.words.bias[model.tokenizer.convert_tokens_to_ids("red")] += 50
    found = answer_accuracy(model, QUESTIONS, VideoFiles(clips), num_frames=1, batch_size=3)
    assert (found["accuracy"], found["answerable"], found["questions"]) == (0.5, 0.75, 4)
    assert found["accuracy_of_answerable"] == pytest.approx(2 / 3) and found["always_most_frequent"] == 0.5
    listed = answer_accuracy(model, QUESTIONS, VideoFiles(clips), answers=["blue", "a red ball"], num_frames=1)
    assert (listed["accuracy"], listed["answers"], listed["answers_dropped"]) == (0.25, 1, 1)
    assert listed["answerable"] == 0.25
    with pytest.raises(ValueError, match=r"none of the answers \('a red ball'\) can be given"):
        answer_accuracy(model, QUESTIONS, VideoFiles(clips), answers=["a red ball"])
    with pytest.raises(ValueError, match="row of a: has no question"):
        answer_accuracy(model, [row("a", "red")], VideoFiles(clips))


def test_a_classifier_answers_from_its_own_list(clips):
    model = evilm_tiny(embed_dim=8, answers=("a red ball", "blue"), answer_head="classifier")
    with torch.no_grad():
        model.answers[3].bias[0] += 50
    found = answer_accuracy(model, QUESTIONS, VideoFiles(clips), num_frames=1)
    assert (found["accuracy"], found["answerable"], found["answers"]) == (0.25, 0.5, 2)


def test_each_question_meets_its_own_clip(model, clips):
    """Logits of a batch are those of each clip with its question alone."""
    clip = encode_rows(model, [row("a", "x"), row("b", "x")], VideoFiles(clips), num_frames=2)
    order = torch.tensor([1, 0, 1])
    asked = ["is it red?", "what colour is the large circle?", "what?"]
    with torch.no_grad():
        together = model.answer_logits(clip.video.rows(order), asked)
        for place, question in enumerate(asked):
            alone = model.answer_logits(clip.video.rows(order[place : place + 1]), [question])
            torch.testing.assert_close(together[place], alone[0], rtol=1e-4, atol=1e-4)
