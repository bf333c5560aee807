"""Segmentation: the network's grid and back, exactly."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest
import torch

nibabel = pytest.importorskip("nibabel")
pytest.importorskip("monai")

from mm.medical.tasks.segmentation import SegmentConfig, segment  # noqa: E402
from mm.medical.volumes import Volume, WorkingGrid  # noqa: E402
from tests.medical.volumes.conftest import oblique  # noqa: E402


class Bright(torch.nn.Module):
    """Calls everything above 100 HU "bright" and sees nothing else."""

    labels = ("background", "bright")
    config = SimpleNamespace(patch=32)

    def __init__(self, spacing=None, crop=True) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.grid = WorkingGrid(spacing=spacing, window="wide", crop_body=crop, smallest=32)

    def forward(self, volume):
        return torch.cat([0 * volume, volume - (100 + 1000) / 2000], 1)


def scan() -> Volume:
    """Oblique, mirrored, 0.9 x 0.7 x 3 mm, with air around a body and something bright in it."""
    generator = np.random.default_rng(0)
    hu = np.full((40, 19, 44), -1000, np.int16)
    hu[8:33, 4:16, 6:38] = generator.integers(-200, 90, (25, 12, 32))
    hu[12:20, 6:9, 10:31] = 400
    return Volume.from_array(hu, oblique())


def test_an_identity_predictor_gives_the_label_on_the_grid_of_the_file(tmp_path):
    """Orient, crop, pad, predict, invert: Dice 1.0 on an oblique, anisotropic scan."""
    volume = scan()
    found = segment(Bright(), volume)
    assert np.array_equal(found.labels, volume.hu > 100)
    folder = found.save(tmp_path / "case", meshes="stl")
    written = nibabel.load(folder / "labels.nii.gz")
    assert written.shape == volume.native_shape
    np.testing.assert_allclose(written.affine, volume.native_affine, atol=1e-4)
    assert np.array_equal(np.asarray(written.dataobj), volume.to_native(volume.hu) > 100)
    assert (folder / "bright.stl").stat().st_size > 84
    told = json.loads((folder / "result.json").read_text())
    truth = float((volume.hu > 100).sum()) * volume.voxel_ml
    assert told["structures"] == [
        {"label": 1, "name": "bright", "voxels": int((volume.hu > 100).sum()), "ml": pytest.approx(truth)}
    ]
    page = (folder / "case.html").read_text()
    assert "Research use only" in page and f"{truth:.4g}" in page
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")


def test_another_spacing_and_an_intensity_window_are_used():
    volume = scan()
    coarse = segment(Bright(), volume, SegmentConfig(spacing=(3.0, 3.0, 3.0)))
    truth = volume.hu > 100
    dice = 2 * (coarse.labels.astype(bool) & truth).sum() / (coarse.labels.sum() + truth.sum())
    assert coarse.config.spacing == (3.0, 3.0, 3.0) and 0.6 < dice < 1
    assert segment(Bright(), volume, SegmentConfig(window="bone")).labels.sum() != truth.sum()


def test_every_window_is_reported_and_the_mode_of_the_network_comes_back():
    calls = []
    network = Bright().train()
    segment(network, scan(), progress=lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1] > 1 and network.training


@pytest.mark.slow
def test_a_large_scan_stays_below_8_gib():
    """512 x 512 x 400 voxels of 0.75 x 0.75 x 1 mm at the published working spacing; the shipped network."""
    code = """
        import json, resource, sys
        import numpy as np
        import mm
        from mm.medical.phantoms import phantom
        from mm.medical.tasks.segmentation import SegmentConfig, segment
        from mm.medical.volumes import Volume
        small = phantom(seed=2, size=64).hu
        rows = np.arange(512) // 8
        hu = small[rows][:, rows][:, :, np.arange(400) * 64 // 400]
        volume = Volume.from_array(hu, np.diag([0.75, 0.75, 1.0, 1.0]))
        done = []
        found = segment(mm.load("velvet_tiny_segmenter"), volume, SegmentConfig(spacing=(1.5, 1.5, 2.0)),
                        progress=lambda now, total: done.append((now, total)))
        assert found.labels.shape == (512, 512, 400) and done[-1][0] == done[-1][1]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"windows": done[-1][1], "peak_gib": peak}))
    """
    out = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    found = json.loads(out.stdout.splitlines()[-1])
    assert found["peak_gib"] < 8 and found["windows"] > 20
