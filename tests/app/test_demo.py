"""The app as a whole: nothing leaves the machine, uploads go, two users at once, dark, narrow, by keyboard."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from mm.app.guard import UNEXPECTED, guarded, quiet, sentence
from mm.app.models import Shelf
from mm.catalog import TABS
from mm.zoo.evaluate import held_out_boards

# --- the guard -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("bad <i>"), FileNotFoundError("bad <i>"), ImportError("bad <i>")])
def test_wrong_input_becomes_its_sentence_without_markup(error):
    gr = pytest.importorskip("gradio")

    def fails() -> None:
        raise error

    with pytest.raises(gr.Error) as caught:
        guarded(fails)()
    assert caught.value.message == "bad &lt;i&gt;"


def test_a_defect_shows_one_fixed_sentence_and_logs_the_trace(caplog):
    gr = pytest.importorskip("gradio")

    def fails() -> None:
        raise KeyError("secret")

    with pytest.raises(gr.Error) as caught:
        guarded(fails)()
    assert caught.value.message == UNEXPECTED
    assert "KeyError: 'secret'" in caplog.text


def test_a_generator_is_refused_since_its_body_would_run_unguarded():
    pytest.importorskip("gradio")

    def steps():
        yield 1

    with pytest.raises(TypeError, match="generator"):
        guarded(steps)


def test_progress_is_gradios_in_the_app_and_silent_elsewhere():
    gr = pytest.importorskip("gradio")
    from inspect import signature

    def work(a, progress=quiet):
        progress(0.5, desc="half")
        return a

    assert isinstance(signature(guarded(work)).parameters["progress"].default, gr.Progress)
    assert work(3) == 3


def test_uploads_are_called_by_their_own_name():
    from tempfile import gettempdir

    assert sentence(ValueError(f"{gettempdir()}/mm_app_x/12ab/scan one.nii: cut off")) == "scan one.nii: cut off"


# --- models --------------------------------------------------------------------------------------------------------


def test_a_model_is_loaded_once_and_lent_to_one_at_a_time():
    shelf, loads, inside, leave = Shelf(), [], Event(), Event()

    def loader(name):
        loads.append(name)
        return name

    def hold() -> None:
        with shelf.lent("a", loader):
            inside.set()
            leave.wait(5)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(hold)
        assert inside.wait(5)
        second = pool.submit(lambda: shelf.lent("a", loader).__enter__())
        assert not second.done()
        leave.set()
        first.result(5)
        assert second.result(5) == "a"
    assert loads == ["a"]


def test_the_longest_unused_model_goes():
    shelf, loads = Shelf(capacity=2), []

    def loader(name):
        loads.append(name)
        return name

    for name in "abacab":
        with shelf.lent(name, loader):
            pass
    assert loads == ["a", "b", "c", "b"]


def test_visitors_from_elsewhere_open_no_folder(tmp_path):
    shelf = Shelf()
    shelf.restrict(["allowed"])
    with shelf.lent("allowed", str.upper) as model:
        assert model == "ALLOWED"
    with pytest.raises(ValueError, match="open to others"):
        with shelf.lent(str(tmp_path), str):
            pass


# --- serving -------------------------------------------------------------------------------------------------------


def test_two_users_at_once_get_their_own_answers(app, tmp_path):
    from gradio_client import Client, handle_file

    from mm.app.ui import save_picture

    boards = held_out_boards(0, 2)
    assert boards[0].answer != boards[1].answer

    def user(number: int) -> list[str]:
        board, session = boards[number], Client(app.local_url, verbose=False, analytics_enabled=False)
        path = save_picture(board.images[0], tmp_path / f"{number}.png")
        inputs = (handle_file(path), board.question, "lavi_tiny", "llava_tiny")
        return [session.predict(*inputs, api_name="/ask")[0] for _ in range(3)]

    with ThreadPoolExecutor(2) as pool:
        for board, tables in zip(boards, pool.map(user, range(2)), strict=True):
            assert all(table.count(f"<td>{board.answer}</td>") == 2 for table in tables)


def test_uploads_lie_in_a_private_folder_that_goes_with_the_app(tmp_path):
    pytest.importorskip("gradio")
    from mm.app.demo import private_folder

    before = os.environ.get("GRADIO_TEMP_DIR")
    with private_folder() as folder:
        assert Path(os.environ["GRADIO_TEMP_DIR"]) == folder
        assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
        assert folder.stat().st_mode & 0o077 == 0
        (folder / "upload.png").write_text("x")
    assert not folder.exists()
    assert os.environ.get("GRADIO_TEMP_DIR") == before


def test_the_page_cleans_up_waits_in_line_and_reports_to_nobody(app):
    from mm.app.demo import CLEANING_S, KEPT_S, QUEUE_LIMIT, SIDE_BY_SIDE

    assert app.delete_cache == (CLEANING_S, KEPT_S)
    assert not app.analytics_enabled
    assert app.share_url is None
    assert app.server_name == "127.0.0.1"
    assert (app.max_file_size, app._queue.max_size) == (200 * 1024**2, QUEUE_LIMIT)
    assert app._queue.default_concurrency_limit == SIDE_BY_SIDE


def test_every_tab_is_there_and_python_connects_to_nothing_outside(browser, outside):
    from mm.app.demo import tab_names

    assert set(tab_names()) == set(TABS)
    titles = [TABS.about(name).partition(":")[0] for name in tab_names()]
    assert [button.text.strip() for button in browser.find("button[role=tab]") if button.text.strip()] == titles
    for title in titles:
        browser.tab(title)
    asked = browser.driver.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert asked
    assert [url for url in asked if not url.startswith((browser.url, "data:", "blob:"))] == []
    assert outside == []


def test_light_dark_and_narrow(browser):
    from PIL import Image

    light = Image.open(browser.shot("light")).convert("L").getpixel((10, 500))
    browser.load("?__theme=dark")
    dark = Image.open(browser.shot("dark")).convert("L").getpixel((10, 500))
    assert light > 200 and dark < 60
    browser.driver.set_window_size(500, 900)  # the narrowest that a headless window takes
    browser.load()
    browser.shot("narrow")
    wide, seen = browser.driver.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= seen + 1, "the page scrolls sideways"
    browser.find(".overflow-menu > button")[0].click()  # tabs that have no room stand in a menu
    (last,) = [entry for entry in browser.find(".overflow-dropdown button") if entry.text.strip() == "CT"]
    last.click()
    assert any(button.is_displayed() for button in browser.find("#ct_run"))


def test_by_keyboard(browser):
    """From the question field: type, Enter, and the answer stands there; Tab reaches the button."""
    from selenium.webdriver.common.keys import Keys

    browser.tab("Ask")
    field = browser.until(lambda: browser.find("#ask_question textarea, #ask_question input"), "question")[0]
    field.send_keys(Keys.TAB)
    assert browser.driver.switch_to.active_element.get_attribute("id") == "ask_run"
    browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
    browser.until(lambda: "four" in browser.text("#ask_result"), "answer")
