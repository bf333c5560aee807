"""Annotation files: each layout as its data set has it, and the row that is wrong is named."""

from __future__ import annotations

import json
import logging

import pytest

from mm.encoders.evilm.annotations import by_video, found_layout, read_names, read_rows, top_answers

MSRVTT = {
    "info": {"year": "2016"},
    "videos": [
        {"video_id": "video0", "split": "train", "category": 9, "start time": 137.72, "end time": 149.44, "id": 0},
        {"video_id": "video1", "split": "test", "category": 16, "start time": 1.0, "end time": 2.0, "id": 1},
    ],
    "sentences": [
        {"caption": "a car is  shown", "video_id": "video0", "sen_id": 0},
        {"caption": "a man talks", "video_id": "video1", "sen_id": 1},
        {"caption": "two men talk", "video_id": "video1", "sen_id": 2},
    ],
}
DIDEMO = [
    {"video": "1@N00_2_a.mov", "description": "first", "times": [[0, 0]], "annotation_id": 1, "num_segments": 6},
    {"video": "3@N00_4_b.avi", "description": "other", "times": [[1, 1]], "annotation_id": 2, "num_segments": 6},
    {"video": "1@N00_2_a.mov", "description": "then", "times": [[2, 3]], "annotation_id": 3, "num_segments": 6},
]
QA = [
    {"answer": "couch", "category_id": 14, "id": 1, "question": "what is a person sitting on?", "video_id": 6513},
    {"answer": "cat", "category_id": 14, "id": 2, "question": "what plays?", "video_id": "clip_a"},
]
WEBVID = 'videoid,contentUrl,duration,page_dir,name\n12,https://x,PT00H00M10S,000001_000050,"A dog, running"\n'
MSVD = "# from the corpus\n-4wsu_5_15 a squirrel eats\n-4wsu_5_15 an animal eats a nut\nab_1_9 a man rides\n"
CORPUS = (
    "VideoID,Start,End,WorkerID,Source,AnnotationTime,Language,Description\n"
    "ab,1,9,7,clean,20,English,A man rides.\nab,1,9,7,clean,20,German,Ein Mann reitet.\n"
)


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def pairs(rows):
    return [(row.video, row.captions) for row in rows]


def test_msrvtt(tmp_path):
    path = write(tmp_path / "MSRVTT.json", MSRVTT)
    assert found_layout(path) == "msrvtt"
    assert pairs(read_rows(path, split="test")) == [("video1", ("a man talks",)), ("video1", ("two men talk",))]
    assert pairs(read_rows(path, split="train")) == [("video0", ("a car is shown",))]
    assert len(list(read_rows(path, split="all"))) == 3
    with pytest.raises(ValueError, match=r"belong to splits \('train' among them\)"):
        list(read_rows(path))
    with pytest.raises(ValueError, match=r"no row of split 'val' \(there are: test, train\)"):
        list(read_rows(path, split="val"))


def test_the_test_split_of_one_caption_per_video_is_a_table(tmp_path):
    path = write(tmp_path / "jsfusion.csv", "key,vid_key,video_id,sentence\nret0,msr9770,video9770,a person connects\n")
    assert pairs(read_rows(path)) == [("video9770", ("a person connects",))]


def test_msvd(tmp_path, caplog):
    path = write(tmp_path / "AllVideoDescriptions.txt", MSVD)
    assert pairs(by_video(read_rows(path))) == [
        ("-4wsu_5_15", ("a squirrel eats", "an animal eats a nut")),
        ("ab_1_9", ("a man rides",)),
    ]
    corpus = write(tmp_path / "video_corpus.csv", CORPUS)
    with caplog.at_level(logging.WARNING):
        assert pairs(read_rows(corpus)) == [("ab_1_9", ("A man rides.",))]
    assert "1 captions in other languages" in caplog.text


def test_didemo_sentences_stay_in_order(tmp_path):
    path = write(tmp_path / "test_data.json", DIDEMO)
    assert found_layout(path) == "didemo"
    assert pairs(read_rows(path)) == [("1@N00_2_a.mov", ("first", "then")), ("3@N00_4_b.avi", ("other",))]


def test_webvid_is_read_row_by_row(tmp_path):
    path = write(tmp_path / "results_2M_val.csv", WEBVID + "13,https://y,PT1S,000001_000050\n")
    assert found_layout(path) == "webvid"
    rows = read_rows(path)
    first = next(rows)  # the broken second row has not been looked at
    assert (first.video, first.captions) == ("000001_000050/12.mp4", ("A dog, running",))
    with pytest.raises(ValueError, match="row 2: 5 columns in the header, not in this row"):
        next(rows)


def test_questions(tmp_path):
    rows = list(read_rows(write(tmp_path / "test_qa.json", QA)))
    assert [(row.video, row.answer) for row in rows] == [("video6513", "couch"), ("clip_a", "cat")]
    assert rows[0].question == "what is a person sitting on?" and rows[0].captions == ()
    names = read_names(write(tmp_path / "youtube_mapping.txt", "-4wsu_5_15 vid6513\n\nab_1_9 vid2\n"))
    assert names["video6513"] == names["vid6513"] == "-4wsu_5_15"
    with pytest.raises(ValueError, match="line 1: expected `FILE NAME`"):
        read_names(write(tmp_path / "bad.txt", "one two three\n"))


def test_tables(tmp_path):
    table = write(tmp_path / "own.tsv", "file\tcaption\nx.mp4\ta dog\n")
    lines = write(tmp_path / "own.jsonl", '{"video": "x", "captions": ["a", "b"]}\n\n{"video": "y", "caption": "c"}\n')
    splits = write(tmp_path / "own.json", {"train": [{"video": "x", "question": "q?", "answer": 3}], "test": []})
    assert pairs(read_rows(table)) == [("x.mp4", ("a dog",))]
    assert pairs(read_rows(lines)) == [("x", ("a", "b")), ("y", ("c",))]
    assert [(row.question, row.answer, row.split) for row in read_rows(splits, split="train")] == [("q?", "3", "train")]


def test_a_folder_with_text_files(clips):
    rows = list(read_rows(clips))
    assert [row.video for row in rows] == ["a.mp4", "b.mkv", "d.mp4", "deep/c.avi", "e.mp4"]
    assert rows[1].captions == ("a red square", "a green circle")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.json",
            MSRVTT | {"sentences": [{"caption": "x"}]},
            r"sentences\[0\]: 'video_id' is missing; it has caption",
        ),
        ("a.json", MSRVTT | {"sentences": [{"caption": "x", "video_id": "v9"}]}, "'v9' is not among the 2 videos"),
        ("a.json", [{"video": "x", "description": ""}], "entry 0: 'description' must be text, got ''"),
        ("a.json", [{"video_id": 1, "question": "q", "answer": None}], "entry 0: 'answer' is missing"),
        ("a.json", [{"caption": "x"}], r"entry 0: no column of videos .* there are caption"),
        ("a.json", [{"video": "x"}], "entry 0: no column of captions, or question and answer"),
        ("a.json", [{"video": "x", "captions": []}], "'captions' is an empty list"),
        ("a.json", ["x"], "entry 0: expected an object, found str"),
        ("a.json", "{", "a.json: not valid JSON"),
        ("a.json", [], "a.json: no row in it"),
        ("a.jsonl", '{"video": "x", "caption": "y"}\n{', "line 2: not valid JSON"),
        ("a.csv", "video,caption\nx,\n", "row 1: 'caption' must be text"),
        ("a.txt", "only_a_name\n", "line 1: expected `CLIP a caption`"),
        ("a.xml", "<x/>", r"annotations are \.csv"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        list(read_rows(write(tmp_path / name, content)))


def test_what_is_not_there(tmp_path, clips):
    with pytest.raises(FileNotFoundError, match="no such annotation file"):
        list(read_rows(tmp_path / "none.csv"))
    with pytest.raises(ValueError, match="layout must be one of"):
        list(read_rows(clips, "coco"))
    (tmp_path / "x.mp4").touch()
    with pytest.raises(ValueError, match=r"x\.mp4: no captions; write them to x\.txt"):
        list(read_rows(tmp_path))


def test_the_answer_list_holds_the_most_frequent_answers(tmp_path):
    rows = [{"video": "x", "question": "q", "answer": answer} for answer in "bca" + "c" * 2 + "b"]
    path = write(tmp_path / "qa.jsonl", "\n".join(map(json.dumps, rows)))
    assert top_answers(read_rows(path), 2) == ("c", "b")
    assert top_answers(read_rows(path), 9) == ("c", "b", "a")
