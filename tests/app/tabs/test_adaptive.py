"""The Adaptive tab as a function, through the client, and in a browser."""

from __future__ import annotations

import pytest

from mm.app.tabs.adaptive import examples, look

MODEL = "visionthink_tiny"


@pytest.fixture(scope="module")
def weaves(tmp_path_factory) -> list[list[str]]:
    """Two hard examples, then two easy ones."""
    return examples(tmp_path_factory.mktemp("adaptive"))


def test_it_asks_for_the_hard_question_and_not_for_the_easy_one(weaves):
    hard, hard_seen, talk = look(*weaves[0], "auto", 0, MODEL)
    easy, easy_seen, _ = look(*weaves[-1], "auto", 0, MODEL)
    assert "<td>yes</td>" in hard and len(hard_seen) == 2
    assert "<td>no</td>" in easy and len(easy_seen) == 1
    assert 'class="number">1.25<' in hard and 'class="number">0.25<' in easy
    assert weaves[0][1] in talk


def test_never_and_always_are_obeyed(weaves):
    assert "<td>no</td>" in look(*weaves[0], "never", 0, MODEL)[0]
    assert "<td>yes</td>" in look(*weaves[-1], "always", 0, MODEL)[0]


def test_the_conversation_is_escaped(weaves):
    assert "<script>" not in look(weaves[0][0], "<script>", "never", 0, MODEL)[2]


@pytest.mark.parametrize(
    ("picture", "question", "model", "says"),
    [
        (None, "what?", MODEL, "give a picture"),
        ("first", " ", MODEL, "give a question"),
        ("first", "what?", "llava_tiny", "encodes every picture at one size"),
    ],
)
def test_wrong_input_is_a_sentence(weaves, picture, question, model, says):
    with pytest.raises(ValueError, match=says):
        look(weaves[0][0] if picture else None, question, "auto", 0, model)


def test_client(client, weaves, broken):
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    table, seen, _ = client.predict(handle_file(weaves[0][0]), weaves[0][1], "auto", 0, MODEL, api_name="/adaptive")
    assert "<td>yes</td>" in table and len(seen) == 2
    with pytest.raises(AppError, match=r"^broken\.png: "):
        client.predict(handle_file(broken), "what?", "auto", 0, MODEL, api_name="/adaptive")


def test_browser(browser, broken):
    browser.tab("Adaptive")
    browser.click("adaptive_run")
    browser.until(lambda: "yes" in browser.text("#adaptive_result"), "the request")
    browser.until(lambda: len(browser.find("#adaptive_seen img")) == 2, "both looks")
    browser.shot("adaptive")
    browser.upload("adaptive_picture", broken)
    browser.click("adaptive_run")
    assert "broken.png" in browser.toast()
