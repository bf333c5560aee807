"""The CT tab as a function, through the client, and in a browser."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("monai")
nibabel = pytest.importorskip("nibabel")

from mm.app.tabs import ct  # noqa: E402
from mm.app.tabs.ct import checked, draw, examples, read_scan  # noqa: E402
from mm.checkpoint import shipped_names  # noqa: E402
from tests.medical.tasks.conftest import models  # noqa: E402

__all__ = ["models"]
ships = pytest.mark.skipif("velvet_tiny" not in shipped_names(), reason="the weights of velvet_tiny do not ship yet")


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> str:
    return examples(tmp_path_factory.mktemp("ct"))[0][0]


def test_a_scan_gives_volumes_reports_a_draft_and_files(scan, models):
    view, volumes, draft, found, files = read_scan(scan, str(models / "velvet"))
    assert "ml" in volumes and "Research only" in draft
    assert len(found) == ct.SHOWN and all(picture.shape == (96, 288) and "." in text for picture, text in found)
    written = nibabel.load(files[0])
    assert written.shape == nibabel.load(scan).shape and Path(files[1]).read_text().startswith("<!doctype html>")
    plain, shown = (draw(view, "soft_tissue", 50, 50, 50, overlay) for overlay in (False, True))
    assert plain.shape[2] == 4 and (np.abs(plain[:300].astype(int) - shown[:300]) > 0).any()
    moved, bone = draw(view, "soft_tissue", 50, 50, 90, False), draw(view, "bone", 50, 50, 50, False)
    assert (moved != plain).any() and (bone != plain).any()


def test_a_model_without_parts_says_what_is_missing(scan, models, tmp_path):
    import shutil

    shutil.copytree(models / "velvet", tmp_path / "alone")
    view, volumes, draft, found, files = read_scan(scan, str(tmp_path / "alone"))
    assert "needs a segmenter" in volumes and "needs a writer" in draft and not files and len(found) == ct.SHOWN
    assert draw(view, "lung", 0, 0, 100, True).any()


def packed(path: Path, *members: tuple[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return str(path)


def test_a_zip_is_read_and_one_with_surprises_is_not(scan, models, tmp_path, monkeypatch):
    inside = ("a/scan.nii.gz", Path(scan).read_bytes())
    view, *_ = read_scan(packed(tmp_path / "good.zip", inside), str(models / "velvet"))
    assert view.volume.hu.shape == (64, 64, 64)
    for name in ("../out.nii", "/etc/x.nii", "..\\x.nii", "C:/x.nii"):
        with pytest.raises(ValueError, match="leads outside"):
            checked(packed(tmp_path / "bad.zip", (name, b"x")))
    monkeypatch.setattr(ct, "MOST_FILES", 2)
    with pytest.raises(ValueError, match="holds 3 files"):
        checked(packed(tmp_path / "many.zip", *((f"{n}.dcm", b"x") for n in range(3))))
    monkeypatch.setattr(ct, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="unpacks to"):  # a bomb: 1 MB of zeros in a few kilobytes
        checked(packed(tmp_path / "bomb.zip", ("a.dcm", bytes(10**6))))


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        (None, b"", "give a scan"),
        ("scan.png", b"x", "ends in .nii"),
        ("scan.zip", b"no archive", "not a zip archive"),
        ("scan.nii.gz", b"no gzip", "not gzip"),
        ("scan.nii", b"\0" * 400, "can't be read"),
    ],
)
def test_a_wrong_upload_is_a_sentence_without_the_path(name, data, says, tmp_path, models):
    path = None
    if name is not None:
        path = str(tmp_path / name)
        Path(path).write_bytes(data)
    with pytest.raises(ValueError, match=says) as error:
        read_scan(path, str(models / "velvet"))
    assert str(tmp_path) not in str(error.value)
    with pytest.raises(ValueError, match="press the button"):
        draw(None, "lung", 1, 1, 1, True)


def test_client(client, scan, broken, models):
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    volumes, draft, found, files = client.predict(handle_file(scan), str(models / "velvet"), api_name="/read_scan")[-4:]
    assert "ml" in volumes and "Research only" in draft and len(found) == ct.SHOWN and len(files) == 2
    wrong = broken.rename(broken.with_name("broken.nii.gz"))
    with pytest.raises(AppError, match="not gzip"):
        client.predict(handle_file(wrong), str(models / "velvet"), api_name="/read_scan")


@ships
def test_browser(browser, broken):
    browser.tab("CT")
    browser.click("ct_run")
    browser.until(lambda: browser.find("#ct_panel img"), "the three planes")
    browser.until(lambda: "Research only" in browser.text("#ct_draft"), "a draft that says what it is")
    browser.until(lambda: len(browser.find("#ct_found img")) >= 2, "reports of other scans")
    browser.shot("ct")
    browser.upload("ct_scan", broken.rename(broken.with_name("broken.nii.gz")))
    browser.click("ct_run")
    assert "not gzip" in browser.toast()
