"""Pieces of the report page: what is embedded is what was handed over."""

from __future__ import annotations

import base64
import io
import re
import wave

import numpy as np
from PIL import Image

from mm.app.report import Page


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


def test_a_table_escapes_its_cells_and_keeps_its_rows():
    page = Page("table")
    page.table([{"name": "<b>", "value": 1.23456}, {"other": 2}], "caption", key="rows")
    assert "<b>" not in page.body() and "1.235" in page.body()
    assert page.numbers["rows"] == [{"name": "<b>", "value": 1.23456}, {"other": 2}]
