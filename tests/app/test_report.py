"""Pieces of the report page: what is embedded is what was handed over."""

from __future__ import annotations

import base64
import io
import re
import wave

import numpy as np
import pytest
from PIL import Image

from mm.app.report import Page, write_report


def embedded(page: Page, kind: str) -> bytes:
    return base64.b64decode(re.search(rf"data:{kind};base64,([^\"]+)", page.body())[1])


def test_a_sound_is_a_wav_of_the_samples_cut_at_full_scale():
    page = Page("sound")
    page.sound(np.array([0.0, 0.5, -0.5, 3.0]), 16_000, "<four samples>")
    with wave.open(io.BytesIO(embedded(page, "audio/wav"))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
        assert np.frombuffer(file.readframes(9), "<i2").tolist() == [0, 16384, -16384, 32767]
    assert "<four" not in page.body() and "&lt;four samples&gt;" in page.body()


def test_a_strip_puts_frames_side_by_side_with_white_between():
    page = Page("strip")
    page.strip([np.zeros((2, 3, 3), np.uint8), np.full((2, 3, 3), 7, np.uint8)], "two", gap=1)
    pixels = np.asarray(Image.open(io.BytesIO(embedded(page, "image/png"))))
    assert pixels[0, :, 0].tolist() == [0, 0, 0, 255, 7, 7, 7]


def test_an_animation_holds_every_frame_and_repeats():
    page = Page("turntable")
    page.animation([np.full((4, 5, 3), level, np.uint8) for level in (0, 90, 180)], "three", milliseconds=50)
    image = Image.open(io.BytesIO(embedded(page, "image/png")))
    assert (image.format, image.n_frames, image.info["loop"], image.info["duration"]) == ("PNG", 3, 0, 50)
    for number, level in enumerate((0, 90, 180)):
        image.seek(number)
        assert image.convert("RGB").getpixel((0, 0)) == (level,) * 3
    with pytest.raises(ValueError, match="at least one frame"):
        page.animation([], "none")


def test_a_table_escapes_its_cells_and_keeps_its_rows():
    page = Page("table")
    page.table([{"name": "<b>", "value": 1.23456}, {"other": 2}], "caption", key="rows")
    assert "<b>" not in page.body() and "1.235" in page.body()
    assert page.numbers["rows"] == [{"name": "<b>", "value": 1.23456}, {"other": 2}]


CORNERS = np.array([[0, 0, 0], [4, 0, 0], [0, 4, 0], [0, 0, 4]])
SIDES = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])


@pytest.mark.parametrize(
    ("vertices", "faces", "says"),
    [(CORNERS[:, :2], SIDES, "vertices"), (CORNERS, SIDES + 1, "there are 4"), (CORNERS, SIDES[:0], "faces")],
)
def test_a_solid_that_is_none_is_refused(vertices, faces, says):
    with pytest.raises(ValueError, match=says):
        Page("solid").solid(vertices, faces, "none")


def test_a_solid_is_drawn_and_turns(_driver, tmp_path):
    """In a browser: the canvas is not empty, and an arrow key changes it."""
    from selenium.webdriver.common.keys import Keys

    page = Page("solid")
    page.solid(CORNERS, SIDES, "a corner.")
    _driver.get(write_report(tmp_path, "t", [page], about="", footer="").as_uri())
    drawn = "return [...document.querySelector('canvas').getContext('2d').getImageData(0, 0, 380, 380).data]"
    before = np.array(_driver.execute_script(drawn)).reshape(380, 380, 4)
    assert (before[..., 3] > 0).mean() > 0.05
    _driver.find_element("css selector", "canvas").send_keys(Keys.ARROW_LEFT)
    after = np.array(_driver.execute_script(drawn)).reshape(380, 380, 4)
    assert (before != after).any()
