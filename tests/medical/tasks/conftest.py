"""A random tiny model with its parts in one folder, and scans of phantoms under a name that must never show up."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("monai")
nibabel = pytest.importorskip("nibabel")

import mm  # noqa: E402
from mm.medical.phantom_reports import report  # noqa: E402
from mm.medical.phantoms import phantom  # noqa: E402

NAME = "Eelina"


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """`velvet`, `velvet_segmenter`, `velvet_writer` with random weights."""
    from mm.medical.tasks.presets import velvet_tiny_writer

    folder = tmp_path_factory.mktemp("models")
    model = mm.create_model("velvet_tiny", vision_heads=False, text_heads=False)
    model.save_pretrained(folder / "velvet")
    mm.create_model("velvet_tiny_segmenter").save_pretrained(folder / "velvet_segmenter")
    velvet_tiny_writer(base=model, width=32, depth=1).save_pretrained(folder / "velvet_writer")
    return folder


@pytest.fixture(scope="session")
def model(models):
    return mm.load(models / "velvet")


@pytest.fixture(scope="session")
def scans(tmp_path_factory) -> Path:
    """Five scans of four patients; the last one has no report."""
    folder = tmp_path_factory.mktemp("scans")
    for number in range(5):
        place = folder / f"{NAME}_{number % 4}"
        place.mkdir(exist_ok=True)
        found = phantom(seed=2 * number, size=24)
        nibabel.save(nibabel.Nifti1Image(found.hu, found.affine), place / f"{NAME}_{number}.nii.gz")
        if number < 4:
            (place / f"{NAME}_{number}.txt").write_text(" ".join(report(found.case)))
    return folder
