"""The cube of a scan, and regions back on its voxels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("monai")

from mm.medical.phantoms import phantom
from mm.medical.tasks.pictures import attention_figure, small_view, stretched, thinned
from mm.medical.tasks.scan_input import cell_edge, cube_of, input_window, regions_to_scan
from mm.medical.velvet.data import windowed
from mm.medical.velvet.volume_views import global_volume
from mm.medical.volumes import Volume


def test_the_cube_is_the_one_that_training_saw():
    """Clipped before it is averaged, on picked slices: bit-equal to the training path."""
    found = phantom(seed=3, size=50)
    volume = Volume.from_array(found.hu, found.affine)
    assert torch.equal(cube_of(volume, 36)[0], global_volume(windowed(found.hu), 36))


def test_the_window_follows_the_unit():
    hu = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    assert input_window(Volume.from_array(hu, np.eye(4))).low == -175
    assert input_window(Volume.from_array(hu, np.eye(4), unit="grey")).high == 255
    assert 20 < input_window(Volume.from_array(hu, np.eye(4), unit="unknown")).high < 23
    assert input_window(Volume.from_array(hu, np.eye(4)), "lung").low == -1350


@pytest.mark.parametrize("region", [(0, 0, 0), (1, 0, 2), (0, 1, 1)])
def test_a_region_lies_where_the_encoder_saw_it(region):
    values = torch.zeros(3, 3, 3)
    values[region] = 1
    shape = (72, 36, 18)
    found = regions_to_scan(values.flatten(), (3, 3, 3), 36, shape)
    assert found.shape == shape
    weights = found / found.sum()
    centre = [
        float((weights.sum(tuple(a for a in range(3) if a != axis)) * np.arange(shape[axis])).sum())
        for axis in range(3)
    ]
    cell = cell_edge(36, 3)
    for axis in range(3):
        low, high = region[axis] * cell, min(36, (region[axis] + 1) * cell)
        expected = (low + high) / 2 * shape[axis] / 36
        assert abs(centre[axis] - expected) < 0.18 * shape[axis]


@pytest.mark.parametrize("edge", [36, 40, 64])
def test_cells_are_those_of_the_encoder(model, edge):
    """Patches of 2 voxels halved twice more per level: the grid that comes out must be covered by such cells."""
    features = model.encode_volume(torch.zeros(1, 1, edge, edge, edge))
    assert cell_edge(edge, features.word.shape[-1]) == 8
    assert cell_edge(edge, features.sentence.shape[-1]) == 16


def test_pictures_have_true_proportions_and_no_empty_plane():
    volume = Volume.from_array(phantom(seed=1, size=24).hu[:, :, :12], np.diag([2.0, 2.0, 2.0, 1.0]))
    view = small_view(volume)
    assert view.shape == (96, 288) and all(view[:, a : a + 96].std() > 5 for a in (0, 96, 192))
    assert view[:20, 96:].max() == 0 and view[:20, :96].max() > 0  # half as high as wide in the other two planes
    thin = thinned(volume, 10)
    assert max(thin.hu.shape) <= 10 and thin.spacing == (6.0, 6.0, 4.0)
    maps = np.random.default_rng(0).random((2, *volume.hu.shape), dtype=np.float32)
    assert len(attention_figure(volume, maps, ["a", "b"]).axes) == 6
    with pytest.raises(ValueError, match="per sentence"):
        attention_figure(volume, maps, ["a"])
    assert stretched(np.full((2, 2), 3.0, np.float32)).max() == 0
