"""The CAD tab as functions, through the client, and in a browser."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

pytest.importorskip("manifold3d", reason="the tab builds parts with the mesh kernel: pip install 'mm[cad]'")

from mm.app.tabs.cad import FORMATS, examples, export, rebuild, write
from mm.cad import parse
from mm.cad.examples import PLATE


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> str:
    return examples(tmp_path_factory.mktemp("cad"))[0]


def test_a_picture_becomes_a_program_with_a_word_on_its_worth(picture):
    text, said = write(picture, "openecad_tiny")
    assert parse(text).extrudes
    assert "Agreement" in said and "Low confidence" not in said


def test_a_picture_of_something_else_is_called_uncertain(tmp_path):
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    assert "Low confidence" in write(str(tmp_path / "noise.png"), "openecad_tiny")[1]


def test_the_solid_follows_the_program():
    path, said = rebuild(PLATE)
    assert Path(path).read_bytes()[:4] == b"glTF"
    assert "63.5 x 63.5 x 6.35 mm" in said
    thicker = rebuild(PLATE.replace("extent_one= 6.35", "extent_one= 12.7"))
    assert "63.5 x 63.5 x 12.7 mm" in thicker[1]


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("", "No program yet"),
        ("a = __import__('os')", "line 1, column 5"),
        (PLATE.replace("[0., 0.], radius= 11.1125", "[30., 0.], radius= 11.1125"), "crossing-loops"),
        (PLATE.replace("extent_one= 6.35", "extent_one= <b>"), "&lt;"),
    ],
)
def test_what_is_wrong_while_typing_is_said_and_not_raised(program, says):
    path, said = rebuild(program)
    assert path is None and says in said


def test_files_are_taken_away():
    pytest.importorskip("OCP", reason="STEP needs the exact kernel: pip install 'mm[cad]'")
    step, stl, glb = map(Path, export(PLATE))
    assert [path.suffix for path in (step, stl, glb)] == [f".{ending}" for ending in FORMATS]
    assert step.read_text().startswith("ISO-10303-21")
    assert stl.stat().st_size == 84 + 50 * struct.unpack("<I", stl.read_bytes()[80:84])[0]
    with pytest.raises(ValueError, match="line 1, column"):
        export("Loops0 = [")


@pytest.mark.parametrize(
    ("given", "model", "says"),
    [
        (None, "openecad_tiny", "give a picture first"),
        ("broken", "openecad_tiny", "broken.png"),
        ("white", "openecad_tiny", "shows no part"),
        ("part", "tiny_lm", "is no tower, projector"),
    ],
)
def test_wrong_input_is_a_sentence(given, model, says, picture, broken, tmp_path):
    from PIL import Image

    Image.new("RGB", (40, 40), "white").save(tmp_path / "white.png")
    path = {"part": picture, "broken": str(broken), "white": str(tmp_path / "white.png")}.get(given)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        write(path, model)


def test_client(client, picture):
    from gradio_client import handle_file

    text, said = client.predict(handle_file(picture), "openecad_tiny", api_name="/cad_write")
    assert parse(text).extrudes and "Agreement" in said
    view, status = client.predict(text, api_name="/cad_rebuild")
    assert Path(view["value"] if isinstance(view, dict) else view).suffix == ".glb" and " mm" in status


def test_client_gets_a_sentence_for_a_wrong_upload(client, broken):
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError, match=r"^broken\.png: ") as caught:
        client.predict(handle_file(broken), "openecad_tiny", api_name="/cad_write")
    assert "Traceback" not in str(caught.value)


def test_browser(browser, broken):
    browser.tab("CAD")
    browser.click("cad_run")
    browser.until(lambda: "Agreement" in browser.text("#cad_result"), "word on the program's worth")
    browser.until(lambda: "volume" in browser.text("#cad_status"), "solid of the program")
    assert "add_extrude" in browser.text("#cad_program")
    browser.until(lambda: browser.find("#cad_view canvas"), "3D view")
    browser.click("cad_export")
    browser.until(lambda: ".step" in browser.text("#cad_files"), "STEP file")
    browser.shot("cad")
    browser.upload("cad_picture", broken)
    browser.click("cad_run")
    assert "broken.png" in browser.toast()
    browser.shot("cad_wrong_upload")
