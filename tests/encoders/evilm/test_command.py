"""`mm video index`, `search`, `ask`, `evaluate`: results as the library gives them, one line for every wrong input."""

from __future__ import annotations

import json

import pytest

from mm.cli import main
from mm.encoders.evilm import EViLM, evilm_tiny
from mm.training.video_features import frames_uint8
from mm.vision import read_video

HERE = ["a.mp4", "b.mkv", "d.mp4", "deep/c.avi", "e.mp4"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "m"
    return evilm_tiny(embed_dim=8, answers=("red", "blue", "left", "right")).save_pretrained(folder)


@pytest.fixture(scope="module")
def index(saved, clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index") / "i"
    assert run("index", clips, "-o", folder, "--model", saved, "--frames", 2) == 0
    return folder


def run(*words) -> int:
    return main(["video", *map(str, words)])


def result(capsys):
    return json.loads(capsys.readouterr().out)


def test_index_then_search(index, clips, capsys):
    assert run("search", index, "a red square moves left", "-k", 2, "--json") == 0
    found = result(capsys)
    assert len(found["hits"]) == 2 and found["clips"] == 5 and found["notes"] == []
    assert found["hits"][0]["score"] >= found["hits"][1]["score"] and found["videos"] == str(clips.resolve())
    assert run("search", index, "a red zeppelin", "--rerank", "all") == 0
    shown = capsys.readouterr().out
    assert "5 clips, 5 scored in" in shown and "MiB of features read" in shown
    assert "note: this model does not know 'zeppelin'" in shown
    assert run("search", index, "red", "--rerank", 1, "-k", 1, "--json") == 0
    assert result(capsys)["scored"] == 1


def test_an_annotation_file_brings_its_captions(saved, clips, tmp_path, capsys):
    (tmp_path / "rows.csv").write_text("video,caption\nb,a green circle\na,a red square\nb,it moves\n")
    words = ("index", tmp_path / "rows.csv", "--videos", clips, "-o", tmp_path / "i", "--model", saved, "--json")
    assert run(*words) == 0
    assert result(capsys)["clips"] == 2
    assert run("search", tmp_path / "i", "red", "--json") == 0
    told = {hit["file"]: hit["captions"] for hit in result(capsys)["hits"]}
    assert told == {"b.mkv": ["a green circle", "it moves"], "a.mp4": ["a red square"]}
    assert run(*words) == 0
    assert result(capsys)["encoded_now"] == 0
    (tmp_path / "rows.csv").write_text("video,caption\nnowhere,red\n")
    assert run(*words) == 1
    assert "row 1: no video 'nowhere'" in capsys.readouterr().err


def test_damaged_files_are_named(saved, damaged, tmp_path, capsys):
    assert run("index", damaged, "-o", tmp_path / "i", "--model", saved) == 0
    shown = capsys.readouterr().out
    for note in ("note: cut.mkv: frames end at", "note: empty.mp4:", "note: sound.mp4:"):
        assert note in shown
    assert all(shown.count(name) == 1 for name in ("cut.mkv", "empty.mp4", "sound.mp4")), "named once each"
    for name in (*HERE, "cut.mkv"):
        (damaged / name).unlink()
    assert run("index", damaged, "-o", tmp_path / "none", "--model", saved) == 1


def test_ask_gives_the_answers_of_the_model(saved, clips, capsys):
    model = EViLM.from_pretrained(saved)
    frames = frames_uint8(read_video(clips / "a.mp4", 3).frames, model.image_preprocessing)
    expected = model.answer(frames, "left or right?", 2)
    assert run("ask", clips / "a.mp4", "-q", "left or right?", "-k", 2, "--frames", 3, "--model", saved, "--json") == 0
    found = result(capsys)
    assert [(row["answer"], row["probability"]) for row in found["answers"]] == [
        (answer, pytest.approx(share, abs=1e-4)) for answer, share in expected
    ]
    assert (found["frames"], found["first_s"], found["last_s"]) == (3, 0.0, pytest.approx(1.0))
    assert run("ask", clips / "a.mp4", "-q", "which?", "--answers", "left", "right", "--model", saved) == 0
    assert "left" in capsys.readouterr().out


def test_evaluate(saved, clips, tmp_path, capsys):
    assert run("evaluate", clips, "--model", saved, "--frames", 2, "--json") == 0
    found = result(capsys)
    assert (found["captions"], found["clips"], found["texts"], found["layout"]) == ("all", 5, 10, "folder")
    didemo = [{"video": "a.mp4", "description": one} for one in ("red", "blue")] + [{"video": "b", "description": "x"}]
    (tmp_path / "didemo.json").write_text(json.dumps(didemo))
    assert run("evaluate", tmp_path / "didemo.json", "--videos", clips, "--model", saved, "--json") == 0
    found = result(capsys)
    assert (found["captions"], found["texts"]) == ("paragraph", 2)
    (tmp_path / "qa.csv").write_text("video,question,answer\na,what?,red\nb,what?,a kite\n")
    asked = ("evaluate", tmp_path / "qa.csv", "--videos", clips, "--model", saved, "--json")
    assert run(*asked, "--answers-from", tmp_path / "qa.csv", "--answer-count", 5) == 0
    found = result(capsys)
    assert (found["answers"], found["answers_dropped"], found["accuracy"], found["answerable"]) == (1, 1, 0.5, 0.5)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["ask", "CLIPS/none.mp4", "-q", "what?"], 1, "no such video file"),
        (["ask", "CLIPS/a.mp4"], 2, "--question"),
        (["ask", "CLIPS/a.mp4", "-q", " "], 1, "question is empty"),
        (["ask", "CLIPS/a.mp4", "-q", "what?", "--answers", "red", "zeppelin"], 1, "'zeppelin'"),
        (["ask", "CLIPS/a.mp4", "-q", "what?", "-k", "9"], 1, "top_k must lie between 1 and 4"),
        (["ask", "CLIPS/a.mp4", "-q", "red " * 99], 1, "the limit is 64"),
        (["ask", "CLIPS/a.mp4", "-q", "what?", "--frames", "0"], 2, "must be at least 1"),
        (["search", "nowhere", "red"], 1, "no index of videos"),
        (["search", "INDEX", ""], 1, "query is empty"),
        (["search", "INDEX", "red", "--rerank", "0"], 2, "--rerank must be a number from 1 or all"),
        (["index", "nowhere", "-o", "x"], 1, "no such annotation file or folder"),
        (["index", "CLIPS", "-o", "x", "--split", "test"], 1, "--split is about an annotation file"),
        (["index", "CLIPS", "-o", "INDEX", "--frames", "3"], 1, "num_frames: 2 there, 3 asked for"),
        (["evaluate", "CLIPS", "--answers-from", "x"], 1, "--answers-from is about questions"),
        (["evaluate", "CLIPS", "--split", "test"], 1, "no row of split 'test'"),
    ],
)
def test_wrong_input_is_one_line(words, code, message, saved, index, clips, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [word.replace("CLIPS", str(clips)).replace("INDEX", str(index)) for word in words]
    capsys.readouterr()
    assert run(*words, *([] if words[0] == "search" else ["--model", saved])) == code
    shown = capsys.readouterr()
    errors = [line for line in shown.err.splitlines() if "error:" in line]
    assert len(errors) == 1 and message in errors[0] and "Traceback" not in shown.err


@pytest.mark.parametrize("word", ["index", "search", "ask", "evaluate", "tokenize"])
def test_help_has_an_example(word, capsys):
    assert run(word, "--help") == 0
    assert f"mm video {word}" in capsys.readouterr().out.partition("example:")[2]
