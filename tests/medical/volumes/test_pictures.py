"""Planes, letters, millilitres and meshes."""

from __future__ import annotations

import numpy as np
import pytest

from mm.medical.volumes import Volume, label_meshes, label_volumes, three_planes
from mm.medical.volumes.mesh import save_mesh
from mm.medical.volumes.panel import plane
from mm.medical.volumes.windows import WINDOWS, Window, level


def marked() -> np.ndarray:
    """One bright voxel high, in front and on the patient's right."""
    array = np.full((10, 12, 14), -1000, np.int16)
    array[8, 9, 11] = 1000
    return array


@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, -1, 1), (1, -1, -1)])
def test_right_is_left_front_is_up_and_head_is_up(flip):
    """The same patient in any axis order gives the same picture."""
    array = marked()[tuple(slice(None, None, f) for f in flip)]
    volume = Volume.from_array(array, np.diag([*flip, 1.0]))
    places = {"axial": (11, 9, 8), "coronal": (9, 11, 8), "sagittal": (8, 11, 9)}
    for name, (index, up, along) in places.items():
        picture = plane(volume.hu, name, index)
        row, column = np.unravel_index(picture.argmax(), picture.shape)
        assert picture.max() == 1000
        assert row == picture.shape[0] - 1 - up and column == picture.shape[1] - 1 - along


def test_the_panel_shows_letters_legend_and_true_proportions():
    volume = Volume.from_array(marked(), np.diag([1.0, 1.0, 3.0, 1.0]))
    labels = np.zeros(volume.hu.shape, np.uint8)
    labels[2:4, 2:4, 2:4] = 1
    figure = three_planes(volume, labels=labels, names=("background", "liver"), window="lung")
    letters = ["".join(text.get_text() for text in axis.texts) for axis in figure.axes]
    assert letters == ["RLAP", "RLSI", "APSI"]
    assert [axis.get_aspect() for axis in figure.axes] == [1.0, 3.0, 3.0]
    assert figure.legends[0].get_texts()[0].get_text() == "liver 0.0 ml"
    shown = figure.axes[0].images[1].get_array()
    assert (shown[..., 3] > 0).sum() == 4
    outline = three_planes(volume, labels=np.ones_like(labels), contour=True).axes[0].images[1].get_array()
    assert (outline[..., 3] > 0).sum() == 2 * (10 + 12) - 4
    with pytest.raises(ValueError, match="outside the volume"):
        three_planes(volume, at=(10, 0, 0))


def test_millilitres_follow_the_determinant():
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[:5, :, :] = 3
    labels[9] = 1
    sheared = np.diag([2.0, 2.0, 5.0, 1.0])
    sheared[1, 2] = 4.0
    rows = label_volumes(labels, sheared, {3: "lung"})
    assert [(row["name"], row["ml"]) for row in rows] == [
        ("lung", pytest.approx(10.0)),
        ("label 1", pytest.approx(2.0)),
    ]


@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_meshes_are_closed_face_outwards_and_measure_right(mirror, tmp_path):
    trimesh = pytest.importorskip("trimesh")
    place = np.indices((20, 20, 20)) - 9.5
    labels = ((place**2).sum(0) < 7.0**2).astype(np.uint8)
    affine = np.diag([mirror, 1.0, 2.0, 1.0])
    affine[:3, 3] = (5, 6, 7)
    mesh = label_meshes(labels, affine, ("background", "ball"))["ball"]
    assert mesh.is_watertight and mesh.is_winding_consistent
    assert mesh.volume == pytest.approx(labels.sum() * 2.0, rel=0.05)  # positive: normals point outwards
    np.testing.assert_allclose(mesh.centroid, [mirror * 9.5 + 5, 15.5, 26.0], atol=0.05)
    save_mesh(tmp_path / "ball.stl", mesh)
    assert trimesh.load(tmp_path / "ball.stl").volume == pytest.approx(mesh.volume, rel=1e-3)
    with pytest.raises(ValueError, match="ends in"):
        save_mesh(tmp_path / "ball.step", mesh)


def test_windows():
    assert WINDOWS["lung"] == Window(-1350, 150) == level(1500, -600)
    np.testing.assert_allclose(WINDOWS["abdomen"](np.array([-500, -175, 37, 250, 900])), [0, 0, 212 / 425, 1, 1])
