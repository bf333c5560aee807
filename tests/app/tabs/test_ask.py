"""The Ask tab as a function, through the client, and in a browser."""

from __future__ import annotations

import pytest

from mm.app.tabs.ask import ask, examples


@pytest.fixture(scope="module")
def board(tmp_path_factory) -> list[str]:
    """A held-out board and a question that both models answer rightly: four."""
    return examples(tmp_path_factory.mktemp("ask"))[0]


def test_the_function_answers_and_shows_where_each_word_looks(board):
    table, looks = ask(*board, "lavi_tiny", "llava_tiny")
    assert table.count("<td>four</td>") == 2
    assert [label.split(" · ")[0] for _, label in looks] == ["row", "3", "col", "6", "?", "(answer)"]
    assert looks[0][0].shape == (256, 256, 3)


def test_the_answer_is_read_from_the_asked_cell(board):
    """The map of the last place is brightest where row 3, column 6 is."""
    from mm.app.models import shelf
    from mm.encoders.lavi.diagnostics import word_looks
    from mm.vision import load_image

    with shelf.lent("lavi_tiny") as model:
        look = word_looks(model, load_image(board[0]), board[1])[-1]
    assert divmod(int(look.attention.argmax()), 8) == (2, 5)
    assert float(look.attention.sum()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("picture", "question", "model", "says"),
    [
        (None, "what?", "lavi_tiny", "give a picture first"),
        ("board", "  ", "lavi_tiny", "give a question first"),
        ("broken", "what?", "lavi_tiny", "broken.png"),
        ("board", "what?", "lavi_tinny", "did you mean lavi_tiny"),
        ("board", "what?", "tiny_vit", "does not answer questions"),
    ],
)
def test_wrong_input_is_a_sentence(picture, question, model, says, board, broken):
    path = {"board": board[0], "broken": str(broken)}.get(picture)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        ask(path, question, model, "llava_tiny")


def test_client(client, board):
    from gradio_client import handle_file

    table, looks = client.predict(handle_file(board[0]), board[1], "lavi_tiny", "llava_tiny", api_name="/ask")
    assert table.count("<td>four</td>") == 2
    assert len(looks) == 6


def test_client_gets_a_sentence_for_a_wrong_upload(client, broken):
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError, match=r"^broken\.png: ") as caught:
        client.predict(handle_file(broken), "what?", "lavi_tiny", "llava_tiny", api_name="/ask")
    assert "Traceback" not in str(caught.value)


def test_browser(browser, broken):
    browser.tab("Ask")
    browser.click("ask_run")
    browser.until(lambda: "four" in browser.text("#ask_result"), "answer")
    browser.until(lambda: len(browser.find("#ask_looks img")) == 6, "map for each word")
    browser.shot("ask")
    browser.upload("ask_picture", broken)
    browser.click("ask_run")
    assert "broken.png" in browser.toast()
    browser.shot("ask_wrong_upload")
