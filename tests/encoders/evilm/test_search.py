"""Search: re-ranking against exhaustive scoring, chunks, ties, files that are damaged, other models."""

from __future__ import annotations

import shutil

import pytest
import torch

from mm.encoders.evilm import EViLM, evilm_tiny
from mm.encoders.evilm.index import VideoIndex, build_index
from mm.encoders.evilm.search import cosines, exhaustive_scores, nearest_clips, reranked_scores

TEXTS = ["a red square", "a blue star", "is it a large green circle?"]


def features(model: EViLM, count: int = 12):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        video = model.encode_video(torch.rand(count, 2, 3, 64, 64, generator=generator))
        return video, model.encode_text(**model.tokenize(TEXTS))


def test_reranking_equals_exhaustive_scoring_on_its_candidates(model):
    video, text = features(model)
    every = exhaustive_scores(model, video, text, chunk_size=5)
    assert every.shape == (12, 3)
    some = reranked_scores(model, video, text, 4, chunk_size=3)
    chosen = nearest_clips(cosines(video, text), 4)  # (4, 3)
    for column in range(3):
        outside = [row for row in range(12) if row not in chosen[:, column]]
        torch.testing.assert_close(some[chosen[:, column], column], every[chosen[:, column], column])
        assert torch.isinf(some[outside, column]).all()
        order = chosen[:, column][every[chosen[:, column], column].argsort(descending=True)]
        assert torch.equal(some[:, column].topk(4).indices, order)
    torch.testing.assert_close(reranked_scores(model, video, text, 99), every)


def test_scores_are_matching_plus_cosine(model):
    video, text = features(model)
    with torch.no_grad():
        expected = model.score_all(video, text) + cosines(video, text)
    torch.testing.assert_close(exhaustive_scores(model, video, text), expected)
    plain = evilm_tiny(embed_dim=8, contrastive_width=0)
    video, text = features(plain)
    with torch.no_grad():
        torch.testing.assert_close(exhaustive_scores(plain, video, text), plain.score_all(video, text))
    with pytest.raises(ValueError, match="no contrastive heads"):
        reranked_scores(plain, video, text, 4)


@pytest.fixture
def index(model, clips, tmp_path):
    captions = {path: (path.stem,) for path in sorted(clips.rglob("*")) if path.suffix in (".mp4", ".mkv", ".avi")}
    return build_index(model, clips, captions, tmp_path / "index", num_frames=2, batch_size=2, shard_items=2)[0]


def test_search_scores_what_the_model_scores(model, index, clips):
    """From files to hits: the same numbers as the model gives on the decoded frames."""
    from mm.training.video_features import frames_uint8
    from mm.vision import read_video

    query = "a red square moves left"
    found = index.search(model, query, top=5, rerank_k=None, chunk_size=2)
    files = [hit.file for hit in found.hits]
    assert sorted(files) == ["a.mp4", "b.mkv", "d.mp4", "deep/c.avi", "e.mp4"] and found.scored == found.clips == 5
    frames = torch.stack(
        [frames_uint8(read_video(clips / file, 2).frames, model.image_preprocessing) for file in files]
    )
    with torch.no_grad():
        video, text = model.encode_video(frames), model.encode_text(**model.tokenize([query]))
    expected = exhaustive_scores(model, video, text)[:, 0]
    torch.testing.assert_close(torch.tensor([hit.score for hit in found.hits]), expected, rtol=1e-2, atol=1e-2)
    assert expected.std() > 0.02  # the rounding of stored features is far below what tells clips apart
    assert [hit.captions for hit in found.hits] == [(file.split("/")[-1].split(".")[0],) for file in files]


def test_search_with_candidates_equals_the_whole_search_among_them(model, index):
    whole = index.search(model, "a blue circle", top=5, rerank_k=None)
    near = sorted(whole.hits, key=lambda hit: -hit.cosine)[:3]
    some = index.search(model, "a blue circle", top=2, rerank_k=3, chunk_size=1)
    assert some.scored == 3 and len(some.hits) == 2
    wanted = sorted(near, key=lambda hit: -hit.score)[:2]
    assert [hit.file for hit in some.hits] == [hit.file for hit in wanted]
    assert [hit.score for hit in some.hits] == pytest.approx([hit.score for hit in wanted], abs=1e-5)
    assert whole.feature_bytes == 5 * 2 * index.cache[index.clips[0].key]["tokens"].numel()


def test_building_goes_on_and_damaged_files_are_left_out(model, damaged, tmp_path):
    captions = dict.fromkeys(sorted(damaged.glob("*.mp4")), ())
    first, now = build_index(model, damaged, captions, tmp_path / "index", num_frames=2)
    assert now == 5 and len(first.clips) == 3
    assert sorted(first.notes) == ["empty.mp4", "sound.mp4"] and "holds no video" in first.notes["sound.mp4"]
    captions[damaged / "cut.mkv"] = ()
    second, now = build_index(model, damaged, captions, tmp_path / "index", num_frames=2)
    assert now == 1 and len(second.clips) == 4 and "frames end at" in second.notes["cut.mkv"]
    assert {hit.file for hit in second.search(model, "red", top=9).hits} == {"a.mp4", "cut.mkv", "d.mp4", "e.mp4"}
    third, _ = build_index(model, damaged, {damaged / "a.mp4": ()}, tmp_path / "index", num_frames=2)
    assert [clip.file for clip in third.clips] == ["a.mp4"]


def test_an_index_belongs_to_its_model(model, index, clips):
    index.check(model)
    with pytest.raises(ValueError, match="computed with something else"):
        index.check(evilm_tiny(seed=1, embed_dim=8))
    fused = EViLM.from_pretrained(model.save_pretrained(index.folder / "m"))
    with torch.no_grad():
        fused.fusion[0].fc1.weight.add_(1)  # features do not depend on fusion
    index.check(fused)
    with pytest.raises(ValueError, match="num_frames: 2 there, 3 asked for"):
        build_index(model, clips, {clips / "a.mp4": ()}, index.folder, num_frames=3)


def test_what_cannot_be_searched_is_said(model, index, tmp_path):
    with pytest.raises(ValueError, match="query is empty"):
        index.search(model, "  ")
    with pytest.raises(ValueError, match="limit is"):
        index.search(model, "red " * 100)
    with pytest.raises(FileNotFoundError, match="mm video index VIDEOS"):
        VideoIndex(tmp_path / "none")
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "x.mp4").touch()
    empty, _ = build_index(model, tmp_path / "clips", {tmp_path / "clips" / "x.mp4": ()}, tmp_path / "empty")
    with pytest.raises(ValueError, match="none of its clips could be read"):
        empty.search(model, "red")
    shutil.rmtree(tmp_path / "clips")
