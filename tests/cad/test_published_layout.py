"""Models in the layout of the published checkpoints, from a folder to a program."""

from __future__ import annotations

import pytest

pytest.importorskip("manifold3d", reason="candidates are built by the mesh kernel: pip install 'mm[cad]'")

from PIL import Image

from mm.cad import parse
from mm.cad.drawing import render
from mm.cad.examples import PLATE
from mm.cad.kernel import build
from mm.cad.manner import PUBLISHED
from mm.cad.model import finished, trained_host
from mm.command import FAILED, run_command


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "part.png"
    Image.fromarray(render(build(parse(PLATE), kernel="mesh", limits=None), size=200)).save(path)
    return path


def test_an_adopted_model_is_asked_and_answers_in_the_published_manner(tinyllava_folder, picture):
    """Random weights, so that everything in the answer comes from the constraint."""
    model = finished(str(tinyllava_folder))
    (candidates,) = model.propose([picture], constrained=True, max_new_tokens=900)
    text = candidates[0].text
    assert text.startswith(PUBLISHED.head) and text.endswith(PUBLISHED.tail)
    assert "add_sketchplane(\n\torigin= [" in text, "the official style"
    assert parse(text).extrudes
    assert model.see(picture).size == (200, 200), "the tower's own preprocessing gets the whole picture"


def test_nothing_of_the_model_is_copied(tinyllava_folder):
    host = trained_host(str(tinyllava_folder))
    parts = {id(value) for value in host.parameters()}
    assert {id(value) for value in finished(str(tinyllava_folder)).adopt(host).parameters()} == parts


def test_a_model_without_projector_is_refused_on_the_command_line(picture, capsys):
    from mm.cad.command import run

    assert run_command(run, ["generate", str(picture), "--model", "tiny_lm"]) == FAILED
    assert "is no tower, projector and language model" in capsys.readouterr().err
