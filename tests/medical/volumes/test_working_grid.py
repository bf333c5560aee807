"""The way to a network's grid and back to the voxels of the file."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch

from mm.medical.phantoms import phantom
from mm.medical.volumes import Volume, WorkingGrid, load_volume, save_nifti
from tests.medical.volumes.conftest import oblique

pytest.importorskip("monai")


def scan(shape=(26, 22, 9)) -> tuple[np.ndarray, np.ndarray]:
    """A body with two organs in air, file order; and its labels."""
    place = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    labels = np.zeros(shape, np.uint8)
    labels[(place**2).sum(0) < 0.6] = 1
    labels[((place - 0.25) ** 2).sum(0) < 0.1] = 2
    return np.array([-1000, 40, 150], np.int16)[labels], labels


def dice(one, other) -> float:
    return 2 * float(((one > 0) & (one == other)).sum()) / float((one > 0).sum() + (other > 0).sum())


def test_an_identity_predictor_gives_the_label_on_the_native_grid(tmp_path):
    """Orient, space, crop, predict, invert, save: oblique, anisotropic, mirrored, axes swapped."""
    array, labels = scan()
    nibabel.save(nibabel.Nifti1Image(array, oblique()), tmp_path / "scan.nii.gz")
    volume = load_volume(tmp_path / "scan.nii.gz")
    for spacing in ((0.7, 0.7, 0.7), (0.6, 1.7, 0.55), None):
        prepared = WorkingGrid(spacing=spacing, margin_mm=3, window="wide").prepare(volume)
        ideal = Volume.from_array(labels, oblique())
        predicted = on_grid(prepared, ideal)
        native = prepared.invert(predicted)
        assert native.shape == array.shape and native.dtype == np.uint8
        if spacing is None or max(s / o for s, o in zip(spacing, volume.spacing, strict=True)) <= 1:
            assert dice(native, labels) == 1.0
            np.testing.assert_array_equal(native, labels)
        save_nifti(tmp_path / "labels.nii.gz", prepared.invert_to_volume(predicted), volume)
        back = nibabel.load(tmp_path / "labels.nii.gz")
        np.testing.assert_allclose(back.affine, oblique(), atol=1e-4)
        np.testing.assert_array_equal(np.asanyarray(back.dataobj), native)


def on_grid(prepared, ideal: Volume) -> torch.Tensor:
    """What a perfect predictor says: the label at the place of every working voxel, looked up by affines alone."""
    shape = prepared.image.shape[1:]
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    to_scan = np.linalg.inv(ideal.affine) @ np.asarray(prepared.image.affine, dtype=np.float64)
    place = np.rint(index @ to_scan[:3, :3].T + to_scan[:3, 3]).astype(int)
    inside = ((place >= 0) & (place < ideal.hu.shape)).all(-1)
    found = np.zeros(shape, np.uint8)
    found[inside] = ideal.hu[tuple(place[inside].T)]
    return torch.from_numpy(found)


def test_a_coarse_grid_loses_little():
    found = phantom(seed=5, size=48)
    volume = Volume.from_array(found.hu, found.affine)
    prepared = WorkingGrid(spacing=tuple(1.4 * s for s in volume.spacing), window="wide", margin_mm=0).prepare(volume)
    predicted = on_grid(prepared, Volume.from_array((found.labels > 0).astype(np.uint8), found.affine))
    assert 0.9 < dice(prepared.invert(predicted), (found.labels > 0).astype(np.uint8)) < 1.0


def test_the_crop_keeps_the_body_and_the_image_lies_where_its_affine_says():
    array, _ = scan((30, 30, 30))
    volume = Volume.from_array(array, np.diag([1.0, 1.0, 1.0, 1.0]))
    wide = WorkingGrid(spacing=None, crop_body=False, smallest=1).prepare(volume)
    tight = WorkingGrid(spacing=None, margin_mm=0, smallest=1).prepare(volume)
    assert tight.image.shape[1] < wide.image.shape[1] == 30
    assert float(tight.image.sum()) == pytest.approx(float(wide.image.sum()))
    offset = np.rint(np.asarray(tight.image.affine)[:3, 3]).astype(int)
    part = tuple(slice(o, o + n) for o, n in zip(offset, tight.image.shape[1:], strict=True))
    torch.testing.assert_close(torch.as_tensor(tight.image[0]), torch.as_tensor(wide.image[0][part]))


def test_maps_come_back_smooth_and_with_their_channels():
    array, _ = scan()
    volume = Volume.from_array(array, oblique())
    prepared = WorkingGrid(spacing=(0.7, 0.7, 0.7), crop_body=False, smallest=1).prepare(volume)
    ramp = torch.linspace(0, 1, prepared.image.shape[1])[:, None, None].expand(*prepared.image.shape[1:])
    native = prepared.invert(torch.stack([ramp, 1 - ramp]), mode="linear")
    assert native.shape == (2, *array.shape) and native.dtype == np.float32
    np.testing.assert_allclose(native.sum(0), 1.0, atol=1e-5)
    axis = nibabel.aff2axcodes(oblique()).index("L")  # right is the first working axis, the file runs to the left
    assert (np.diff(native[0], axis=axis) < 0).all()


def test_wrong_shapes_and_spacings_are_refused():
    array, _ = scan()
    volume = Volume.from_array(array, oblique())
    prepared = WorkingGrid(spacing=None).prepare(volume)
    with pytest.raises(ValueError, match="working grid"):
        prepared.invert(torch.zeros(3, 3, 3))
    with pytest.raises(ValueError, match="positive millimetres"):
        WorkingGrid(spacing=(1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match="unknown window"):
        WorkingGrid(window="liver")
    with pytest.raises(ValueError, match="coarser"):
        WorkingGrid(spacing=(1e-3, 1e-3, 1e-3)).prepare(volume)
