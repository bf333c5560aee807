"""The data module over annotated videos: batches, draws, shards, resuming, cached codes, bad rows."""

from __future__ import annotations

import json
import logging
from itertools import islice

import pytest
import torch

from mm.cli import main
from mm.codecs.semantic_vq.code_cache import codes_job, tokenize_videos
from mm.codecs.semantic_vq.presets import semantic_vq_tiny
from mm.data.video_files import video_files
from mm.encoders.evilm import EViLM, evilm_tiny
from mm.encoders.evilm.records import VideoData, VideoDataConfig, VideoRecords
from mm.training.video_features import frames_uint8
from mm.vision import read_video


@pytest.fixture(scope="module")
def small():
    return evilm_tiny(embed_dim=8, max_text_len=12)


def data(small, clips, **changes) -> VideoData:
    settings = {"train": str(clips), "test": str(clips), "batch_size": 2, "num_frames": 3, "train_batches": 4}
    return VideoData(VideoDataConfig(**settings | changes), model=small)


def batches(module: VideoData, count: int) -> list[dict[str, torch.Tensor]]:
    return list(islice(module.train_dataloader(), count))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_test_batch_holds_the_evenly_spaced_frames_and_the_first_caption(small, clips):
    batch = next(iter(data(small, clips).test_dataloader()))
    assert batch.keys() == {"frames", "input_ids"} and batch["frames"].dtype == torch.uint8
    for row, name in enumerate(("a.mp4", "b.mkv")):
        expected = frames_uint8(read_video(clips / name, 3).frames, small.image_preprocessing)
        assert torch.equal(batch["frames"][row], expected)
    words = small.tokenizer.convert_ids_to_tokens(batch["input_ids"][1])
    assert words == ["[CLS]", "a", "red", "square", "[SEP]"]


def test_every_clip_comes_once_per_pass_in_a_drawn_order(small, clips):
    """Two passes over five clips, told apart by the colour of their grounds."""
    grounds = {
        path.name: frames_uint8(read_video(path, 1).frames, small.image_preprocessing)[0, :, 0, 0].float()
        for path in video_files(clips)
    }
    config = VideoDataConfig(train=str(clips), batch_size=1, num_frames=3, train_batches=10)
    corners = [batch["frames"][0, 0, :, 0, 0].float() for batch in batches(VideoData(config, small), 10)]
    order = [min(grounds, key=lambda name: (grounds[name] - corner).abs().sum()) for corner in corners]
    assert set(order[:5]) == set(order[5:]) == set(grounds) and order[:5] != order[5:]
    reader = VideoRecords(str(clips), config, training=True)
    parts = [[sample.meta["video"] for sample in reader.part(index, 2)] for index in range(2)]
    assert sorted(parts[0] + parts[1]) == ["a.mp4", "b.mkv", "d.mp4", "deep/c.avi", "e.mp4"] and len(parts[0]) == 3


def test_draws_depend_on_the_seed_and_the_pass_alone(small, clips):
    one, again = batches(data(small, clips), 4), batches(data(small, clips), 4)
    assert all(same(*pair) for pair in zip(one, again, strict=True))
    other = batches(data(small, clips, seed=1), 4)
    assert not all(same(*pair) for pair in zip(one, other, strict=True))
    reader = VideoRecords(str(clips), VideoDataConfig(num_frames=2), training=True)
    told = []
    for turn in range(8):
        reader.turn = turn
        told.append([(sample.text, *sample.meta["times_s"]) for sample in reader])
    assert len({tuple(row) for row in zip(*told, strict=True)}) == 5
    assert all(len(set(column)) > 2 for column in zip(*told, strict=True))  # captions and frames change


def test_every_pass_draws_anew(small, clips):
    """In the order of the file, so that only the draws can differ from pass to pass."""
    passes = batches(data(small, clips, batch_size=5, shuffle=0), 4)
    assert len({one["input_ids"].numpy().tobytes() for one in passes}) > 1
    assert len({one["frames"].numpy().tobytes() for one in passes}) == 4


def test_a_run_that_was_stopped_goes_on_with_the_same_batches(small, clips):
    whole = batches(data(small, clips, train_batches=6), 6)
    first = data(small, clips, train_batches=6)
    loader = iter(first.train_dataloader())
    for _ in range(3):
        next(loader)
        first._loader.confirm()
    second = data(small, clips, train_batches=6)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert all(same(*pair) for pair in zip(batches(second, 3), whole[3:], strict=True))


def test_workers_give_every_clip_once(small, clips):
    loader = data(small, clips, workers=2, batch_size=1).test_dataloader()
    assert len(list(loader)) == 5


def test_paragraphs(small, clips):
    config = VideoDataConfig(captions="paragraph", num_frames=1)
    test = next(iter(VideoRecords(str(clips), config)))
    assert test.text == "a red square a blue circle"
    reader, found = VideoRecords(str(clips), config, training=True), set()
    for turn in range(30):
        reader.turn = turn
        found.add(next(iter(reader)).text)
    assert found == {"a red square", "a blue circle", test.text, "a blue circle a red square"}


def test_questions(small, clips, tmp_path):
    rows = [("a", "what colour is it?", "red"), ("b", "what is it?", "a red ball"), ("deep/c", "what?", "Square")]
    (tmp_path / "qa.json").write_text(
        json.dumps([{"video": video, "question": asked, "answer": said} for video, asked, said in rows])
    )
    batch = next(
        iter(data(small, clips, test=str(tmp_path / "qa.json"), videos=str(clips), batch_size=3).test_dataloader())
    )
    assert batch.keys() == {"frames", "question_ids", "answer_ids"}
    word = small.tokenizer.convert_tokens_to_ids
    assert batch["answer_ids"].tolist() == [word("red"), -100, word("square")]
    ends = [small.tokenizer.convert_ids_to_tokens(row[row != 0])[-4:] for row in batch["question_ids"]]
    assert ends == [["answer", ":", "[MASK]", "[SEP]"]] * 3


def test_words_that_the_tokenizer_does_not_know_are_said_once(small, clips, tmp_path, caplog):
    (tmp_path / "rows.csv").write_text("video,caption\na,a red zeppelin\nb,a blimp\n")
    with caplog.at_level(logging.WARNING):
        list(data(small, clips, test=str(tmp_path / "rows.csv"), videos=str(clips), batch_size=1).test_dataloader())
    assert caplog.text.count("does not know every word of") == 1 and "'a red zeppelin'" in caplog.text


def test_texts_that_are_too_long(small, clips, tmp_path, caplog):
    (tmp_path / "long.csv").write_text(f"video,caption\na,{'red ' * 30}\n")
    long = {"test": str(tmp_path / "long.csv"), "videos": str(clips)}
    with caplog.at_level(logging.WARNING):
        batch = next(iter(data(small, clips, **long).test_dataloader()))
    assert batch["input_ids"].shape == (1, 12) and "row 1: 32 tokens, cut at 12" in caplog.text
    (tmp_path / "long.csv").write_text(f"video,question,answer\na,{'red ' * 30},red\n")
    with pytest.raises(ValueError, match="row 1: the question has 35 tokens, limit 12"):
        next(iter(data(small, clips, **long).test_dataloader()))


def test_cached_codes_are_those_of_the_frames(small, clips, tmp_path):
    tokenizer = semantic_vq_tiny()
    job, files = codes_job(tokenizer, video_files(clips), clips, tmp_path / "codes", num_frames=6)
    tokenize_videos(tokenizer, job, files)
    module = data(small, clips, codes=str(tmp_path / "codes"))
    plain = batches(data(small, clips, codes=str(tmp_path / "codes"), seed=5), 3)
    for batch in [*batches(module, 3), *plain, *module.test_dataloader()]:
        assert torch.equal(batch["codes"], tokenizer.encode(batch["frames"]))
    with pytest.raises(ValueError, match="holds 6 frames of each video, num_frames=7"):
        data(small, clips, codes=str(tmp_path / "codes"), num_frames=7).reader("train")
    with pytest.raises(ValueError, match="crop=random with cached codes"):
        VideoDataConfig(codes="x", crop="random")
    job, files = codes_job(tokenizer, [clips / "a.mp4"], clips, tmp_path / "few", num_frames=6)
    tokenize_videos(tokenizer, job, files)
    with pytest.raises(ValueError, match=r"has no codes of b\.mkv .*; run mm video tokenize"):
        list(data(small, clips, codes=str(tmp_path / "few")).test_dataloader())


def test_training_on_a_folder_of_clips(clips, tmp_path, monkeypatch, capsys):
    """`mm fit --config evilm/videos` on cached codes; the tokenizer itself must not run."""
    monkeypatch.chdir(tmp_path)
    tokenizer = semantic_vq_tiny(seed=3)
    tokenizer.save_pretrained("tok")
    job, files = codes_job(tokenizer, video_files(clips), clips, "codes", num_frames=6)
    tokenize_videos(tokenizer, job, files)

    def refuse(*_: object) -> None:
        raise AssertionError("the tokenizer ran although its codes are cached")

    monkeypatch.setattr("mm.codecs.semantic_vq.tokenizer.SemanticVQTokenizer.encode", refuse)
    words = ["fit", "--config", "evilm/videos", "--model.tokenizer", "tok", "--data.config.train", str(clips), "--json"]
    words += ["--data.config.codes", "codes", "--data.config.batch_size", "3", "--out", "run"]
    assert main([*words, "--trainer.max_steps", "2", "--trainer.accelerator", "cpu"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 2
    trained = EViLM.from_pretrained(tmp_path / "run" / "model")
    fresh = evilm_tiny()
    assert not torch.equal(trained.codes.expand.weight, fresh.codes.expand.weight)  # masked codes were learned from
    words = ["test", "--config", "run/config.yaml", "--data.config.test", str(clips), "--out", "run", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["test/codes_loss"] > 0


def test_random_crops_keep_the_short_side(small, clips):
    centre = next(iter(VideoRecords(str(clips), VideoDataConfig(num_frames=1), training=True)))
    assert centre.images[0].shape == (64, 80, 3)
    reader, lefts = (
        VideoRecords(str(clips), VideoDataConfig(num_frames=1, crop="random", captions="one"), training=True),
        set(),
    )
    for turn in range(6):
        reader.turn = turn
        sample = next(iter(reader))
        assert sample.images[0].shape == (64, 64, 3)
        lefts.add(sample.images[0].tobytes())
    assert len(lefts) > 1


def test_bad_videos_stop_or_are_counted(small, damaged, tmp_path, caplog):
    (tmp_path / "rows.csv").write_text("video,caption\na,red\nsound,red\nnowhere,red\ncut,red\n")
    rows = {"test": str(tmp_path / "rows.csv"), "videos": str(damaged)}
    with pytest.raises(ValueError, match=r"row 2: .*sound\.mp4: holds no video"):
        list(data(small, damaged, **rows, batch_size=1).test_dataloader())
    with caplog.at_level(logging.WARNING):
        found = list(data(small, damaged, **rows, batch_size=1, on_error="count").test_dataloader())
    assert len(found) == 2
    assert "2 of 4 records could not be read" in caplog.text and "frames end at" in caplog.text
    assert "row 3: no video 'nowhere'" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"num_frames": 0}, "num_frames must be at least 1"),
        ({"crop": "left"}, "crop center or random"),
        ({"captions": "all"}, "captions must be one or paragraph"),
    ],
)
def test_wrong_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        VideoDataConfig(**changes)


def test_what_is_missing_is_said(small, clips):
    with pytest.raises(ValueError, match=r"no validation data was named; set data\.init_args\.config\.validation"):
        data(small, clips).reader("validation")
    assert data(small, clips).val_dataloader() == []
    with pytest.raises(FileNotFoundError, match="no such annotation file"):
        data(small, clips, train="none.csv").train_dataloader()
    with pytest.raises(ValueError, match="needs a model with a tokenizer"):
        VideoData(VideoDataConfig(test=str(clips))).test_dataloader()
