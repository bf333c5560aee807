"""The Prune tab as a function, through the client, and in a browser."""

from __future__ import annotations

import re

import pytest

from mm.app.tabs.prune import METHODS, examples, method, prune

MODEL = "llava_tiny_256"


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> list[str]:
    return examples(tmp_path_factory.mktemp("prune"))[0]


def cells(table: str, name: str) -> list[str]:
    """Cells of the row that starts with `name`."""
    return re.findall(r"<td[^>]*>([^<]*)</td>", re.search(rf"<tr><td>{name}</td>.*?</tr>", table)[0])


def test_fewer_tokens_cost_less_and_every_method_has_a_row(scene):
    table, maps = prune(*scene, 28, ["flowcut", "uniform"], MODEL)
    full, flowcut, even = (cells(table, name) for name in ("all tokens", "flowcut", "uniform"))
    assert [full[2], flowcut[2], even[2]] == ["256", "28", "28"]
    assert float(flowcut[4]) < float(even[4]) < float(full[4])  # cuts on the way save inside the encoder, too
    assert [name for _, name in maps] == ["flowcut", "uniform"]


def test_every_name_on_offer_is_a_method():
    for name in METHODS:
        assert method(name, 8).target_tokens == 8


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"picture": None}, "give a picture"),
        ({"question": ""}, "give a question"),
        ({"methods": []}, "tick at least one"),
        ({"methods": ["flowcat"]}, "unknown method 'flowcat'"),
        ({"model": "lavi_tiny"}, "a LaviModel has no visual tokens between its words"),
    ],
)
def test_wrong_input_is_a_sentence(scene, changes, says):
    inputs = {"picture": scene[0], "question": scene[1], "tokens": 28, "methods": ["uniform"], "model": MODEL}
    with pytest.raises(ValueError, match=says):
        prune(**(inputs | changes))


def test_client(client, scene, broken):
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    table, maps = client.predict(handle_file(scene[0]), scene[1], 84, ["uniform"], MODEL, api_name="/prune")
    assert cells(table, "uniform")[2] == "84" and len(maps) == 1
    with pytest.raises(AppError, match=r"^broken\.png: "):
        client.predict(handle_file(broken), "what?", 84, ["uniform"], MODEL, api_name="/prune")


def test_browser(browser, broken):
    browser.tab("Prune")
    browser.click("prune_run")
    browser.until(lambda: "schedule=last" in browser.text("#prune_result"), "a row per method")
    browser.until(lambda: len(browser.find("#prune_maps img")) >= 3, "keep maps")
    browser.shot("prune")
    browser.upload("prune_picture", broken)
    browser.click("prune_run")
    assert "broken.png" in browser.toast()
