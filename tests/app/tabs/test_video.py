"""The Video tab as functions, through the client, and in a browser."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mm.app.tabs.video import QUERY, QUESTION, ask, examples, look, search
from mm.checkpoint import shipped_names

NEEDED = ("evilm_tiny", "semantic_vq_tiny")


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[str]:
    """Five held-out clips."""
    return [path for path, _ in examples(tmp_path_factory.mktemp("video"))]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[str, str]:
    """Folders of a model and a tokenizer with random weights: what is shown must be what they say."""
    from mm.codecs.semantic_vq.presets import semantic_vq_tiny
    from mm.encoders.evilm import evilm_tiny

    folder = tmp_path_factory.mktemp("models")
    saved = (
        evilm_tiny(seed=2).save_pretrained(folder / "evilm"),
        semantic_vq_tiny(seed=2).save_pretrained(folder / "tok"),
    )
    return str(saved[0]), str(saved[1])


@pytest.fixture
def broken_clip(broken) -> Path:
    return broken.rename(broken.with_name("broken.mp4"))


def test_answers_are_the_model_s(clips, models):
    from mm.encoders.evilm import EViLM
    from mm.training.video_features import frames_uint8
    from mm.vision import read_video

    answers, notes = ask(clips[0], QUESTION, models[0])
    model = EViLM.from_pretrained(models[0])
    frames = frames_uint8(read_video(clips[0], 4).frames, model.image_preprocessing)
    assert list(answers.items()) == [
        (name, pytest.approx(p, abs=1e-4)) for name, p in model.answer(frames, QUESTION, 4)
    ]
    assert notes == ""
    _, notes = ask(clips[0], "is the <b>zeppelin</b> red?", models[0])
    assert "&#x27;" not in notes and "zeppelin" in notes and "<b>" not in notes


def test_codes_are_colours_over_the_frames(clips, models):
    gallery = look(clips[0], models[1])
    assert len(gallery) == 8 and all(picture.shape == (256, 256, 3) for picture, _ in gallery)
    assert [name for _, name in gallery[:2]] == ["0.00 s", "0.50 s"] and gallery[4][1].endswith("codes")
    plain, coloured = np.stack([p for p, _ in gallery[:4]]), np.stack([p for p, _ in gallery[4:]])
    assert np.abs(plain.astype(int) - coloured).mean() > 10


def test_clips_come_best_first(clips, models):
    found = search(QUERY, clips, models[0])
    scores = [float(caption.split(" · ")[0]) for _, caption in found]
    assert len(found) == 5 and scores == sorted(scores, reverse=True)
    assert found[0][0].shape == (128, 512, 3)  # four frames of 64 pixels side by side, twice as large
    assert sorted(caption.split(" · ")[1] for _, caption in found) == [f"{number}.mp4" for number in range(5)]
    assert len(search(QUERY, None, models[0])) == 6


@pytest.mark.parametrize(
    ("clip", "question", "model", "says"),
    [
        (None, QUESTION, "", "give a clip first"),
        ("clip", " ", "", "give a question first"),
        ("broken", QUESTION, "", "broken.mp4: not a readable video"),
        ("clip", QUESTION, "flame_tiny", "not a mm.encoders.evilm"),
        ("clip", "red " * 99, "", "the limit is 64"),
    ],
)
def test_wrong_input_is_a_sentence(clip, question, model, says, clips, models, broken_clip):
    path = {"clip": clips[0], "broken": str(broken_clip)}.get(clip)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        ask(path, question, model or models[0])


def test_client(client, clips, models, broken_clip):
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    likely, _ = client.predict(handle_file(clips[0]), QUESTION, models[0], api_name="/ask_clip")
    assert likely["label"] == next(iter(ask(clips[0], QUESTION, models[0])[0]))
    assert len(client.predict(handle_file(clips[0]), models[1], api_name="/clip_codes")) == 8
    assert len(client.predict(QUERY, [handle_file(clip) for clip in clips], models[0], api_name="/find_clips")) == 5
    for word, inputs in (("/ask_clip", (QUESTION, models[0])), ("/clip_codes", (models[1],))):
        with pytest.raises(AppError, match=r"^broken\.mp4: not a readable video") as caught:
            client.predict(handle_file(broken_clip), *inputs, api_name=word)
        assert "Traceback" not in str(caught.value)


@pytest.mark.skipif(not set(NEEDED) <= set(shipped_names()), reason="the weights of E-ViLM do not ship yet")
def test_browser(browser, broken_clip):
    browser.tab("Video")
    browser.click("video_run")
    browser.until(lambda: "right" in browser.text("#video_result"), "answer")
    browser.click("video_see")
    browser.until(lambda: len(browser.find("#video_codes img")) == 8, "frames and codes")
    browser.click("video_find")
    browser.until(lambda: len(browser.find("#video_found img")) == 6, "clips")
    browser.shot("video")
    browser.upload("video_clip", broken_clip)
    browser.click("video_run")
    assert "broken.mp4" in browser.toast()
