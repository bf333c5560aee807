"""The Search tab as functions, through the client, and in a browser."""

from __future__ import annotations

import numpy as np
import pytest

from mm.app.tabs.search import LABELS, PHRASES, QUERY, classify, examples, search

MODEL = "flame_tiny"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[str]:
    """The first is a blue diamond, the second a yellow circle."""
    return [path for (path,) in examples(tmp_path_factory.mktemp("search"))]


def test_the_right_label_is_the_likeliest_and_facets_differ(pictures):
    likely, facets = classify(pictures[0], LABELS, PHRASES, MODEL)
    assert max(likely, key=likely.get) == "blue diamond"
    assert sum(likely.values()) == pytest.approx(1)
    assert facets.count("<tr>") == 4 and "what colour is the thing?" in facets


def test_own_pictures_are_found_by_a_description(pictures):
    found = search(QUERY, pictures, MODEL)
    assert len(found) == 6
    from mm.vision import load_image

    assert np.array_equal(np.asarray(found[0][0]), np.asarray(load_image(pictures[1])))
    cosines = [float(caption) for _, caption in found]
    assert cosines == sorted(cosines, reverse=True)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"picture": None}, "give a picture"),
        ({"labels": " , "}, "at least one label"),
        ({"labels": "star, star"}, "twice: star"),
        ({"phrases": "a picture"}, "{}"),
        ({"model": "llava_tiny"}, "llava_tiny"),
    ],
)
def test_wrong_input_is_a_sentence(pictures, changes, says):
    inputs = {"picture": pictures[0], "labels": LABELS, "phrases": PHRASES, "model": MODEL}
    with pytest.raises(ValueError, match=says):
        classify(**(inputs | changes))


def test_client(client, pictures, broken):
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    likely, _ = client.predict(handle_file(pictures[1]), LABELS, PHRASES, MODEL, api_name="/classify")
    assert likely["label"] == "yellow circle"
    assert len(client.predict(QUERY, None, MODEL, api_name="/find")) == 6
    with pytest.raises(AppError, match=r"^broken\.png: "):
        client.predict(QUERY, [handle_file(broken)], MODEL, api_name="/find")


def test_browser(browser, broken):
    browser.tab("Search")
    browser.click("search_run")
    browser.until(lambda: "blue diamond" in browser.text("#search_result"), "labels")
    browser.click("search_find")
    browser.until(lambda: len(browser.find("#search_found img")) == 6, "pictures")
    browser.shot("search")
    browser.upload("search_picture", broken)
    browser.click("search_run")
    assert "broken.png" in browser.toast()
