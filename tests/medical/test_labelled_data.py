"""nnU-Net folders and Decathlon lists with labels, from files to a trained segmenter."""

from __future__ import annotations

import json
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch

nibabel = pytest.importorskip("nibabel")
pytest.importorskip("monai")

from mm.medical import load_volume  # noqa: E402
from mm.medical.folder_data import RecordsConfig  # noqa: E402
from mm.medical.labelled_data import LabelledConfig, LabelledScans, crop, prepare, read_labels  # noqa: E402
from mm.medical.phantoms import phantom  # noqa: E402
from mm.medical.tasks.segment_module import SegmentModule, mean_dice, names_in_order  # noqa: E402
from mm.medical.volumes import WorkingGrid  # noqa: E402
from tests.medical.volumes.conftest import oblique  # noqa: E402


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Six cases of two labels: body and bone, on oblique grids."""
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "imagesTr").mkdir()
    (folder / "labelsTr").mkdir()
    affine = oblique()
    affine[:3, :3] *= 12 / np.linalg.norm(affine[:3, :3], axis=0)
    for number in range(6):
        hu = phantom(seed=2 * number, size=32).hu
        labels = ((hu > -500).astype(np.uint8) + (hu > 250)).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(hu, affine), folder / "imagesTr" / f"case{number}_0000.nii.gz")
        nibabel.save(nibabel.Nifti1Image(labels, affine), folder / "labelsTr" / f"case{number}.nii.gz")
    listed = [{"image": f"imagesTr/case{n}_0000.nii.gz", "label": f"labelsTr/case{n}.nii.gz"} for n in range(6)]
    text = {"labels": {"background": 0, "body": 1, "bone": 2}, "training": listed}
    (folder / "dataset.json").write_text(json.dumps(text))
    return folder


def module(dataset: Path) -> SegmentModule:
    vision = {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "window_size": 3}
    fields = {"vision": vision, "spacing_mm": [12.0, 12.0, 12.0], "patch": 32, "window": "wide", "bottleneck": False}
    return SegmentModule(labels=str(dataset / "dataset.json"), segmenter=fields)


def config(dataset: Path, **records) -> LabelledConfig:
    chosen = {"format": "nnunet", "path": str(dataset), "validation": 0.3, "test": 0.2} | records
    return LabelledConfig(records=RecordsConfig(**chosen), train_batches=4, batch_size=1)


def test_scan_and_label_stay_together_through_grid_crop_and_augmentation(dataset):
    """The label is a function of the intensities: it must be that still, wherever both went."""
    data = LabelledScans(config(dataset), module(dataset).model)
    data.config.__dict__.update(flips=0.5, turns=0.5, shift=0.0)
    low = (-500 + 1000) / 2000
    for number, record in enumerate(data.split("train")):
        batch = data.batch([record], number, augment=True)
        image, labels = batch["image"], batch["labels"]
        assert image.shape == labels.shape == (2, 1, 32, 32, 32)
        agree = (image > low) == (labels > 0)
        assert agree.float().mean() > 0.97 and 0.1 < (labels > 0).float().mean() < 0.95


def test_every_second_crop_shows_a_label():
    scan = type("Scan", (), {})()
    scan.image = torch.zeros(1, 60, 60, 60)
    scan.labels = torch.zeros(1, 60, 60, 60, dtype=torch.uint8)
    scan.labels[0, 55, 3, 50] = 1
    generator = np.random.default_rng(0)
    assert all(crop(scan, 16, generator, labelled=True)[1].any() for _ in range(20))
    assert sum(bool(crop(scan, 16, generator, labelled=False)[1].any()) for _ in range(20)) < 10
    with pytest.raises(ValueError, match="smaller than a crop"):
        crop(scan, 64, generator, labelled=True)


def test_a_decathlon_list_and_an_nnunet_folder_give_the_same_scans(dataset):
    listed = config(dataset, format="decathlon", path=str(dataset / "dataset.json"), validation=0.0, test=0.0)
    one, other = LabelledScans(listed), LabelledScans(config(dataset, validation=0.0, test=0.0))
    pairs = [{(record.image, record.label) for record in data.split("train")} for data in (one, other)]
    assert len(pairs[0]) == 6 and {(a.resolve(), b.resolve()) for a, b in pairs[1]} == pairs[0]


def test_a_segmenter_learns_from_a_folder(dataset):
    trained = module(dataset)
    assert trained.model.labels == ("background", "body", "bone")
    data = LabelledScans(config(dataset))
    trained.optimizer = trained.optimizer.__class__(lr=5e-3, schedule="constant")
    trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
                                enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    records = data.split("train")[:1]
    data.trainer = None
    given = LabelledScans(data.config, trained.model)
    with torch.no_grad():
        before = trained.compute_loss(given.batch(records, 0, augment=False))[0]
    trainer.fit(trained, data)
    with torch.no_grad():
        after, logs = trained.compute_loss(given.batch(records, 0, augment=False))
    assert trainer.global_step == 8 and after < 0.9 * before and 0 <= logs["dice"] <= 1


def test_labels_off_the_grid_or_unknown_are_refused_without_a_name(dataset, tmp_path):
    volume = load_volume(dataset / "imagesTr" / "case0_0000.nii.gz")
    path = tmp_path / "Eelina.nii.gz"
    for array, affine, said in (
        (np.zeros((32, 32, 31), np.uint8), volume.native_affine, "one grid"),
        (np.zeros((32, 32, 32), np.uint8), np.eye(4), "one grid"),
        (np.full((32, 32, 32), 0.5, np.float32), volume.native_affine, "no labels"),
    ):
        nibabel.save(nibabel.Nifti1Image(array, affine), path)
        with pytest.raises(ValueError, match=said) as error:
            read_labels(path, volume)
        assert "Eelina" not in str(error.value)
    path.write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="can't be read"):
        read_labels(path, volume)
    with pytest.raises(ValueError, match="decathlon or nnunet"):
        LabelledConfig(records=RecordsConfig(format="m3d"))
    data = LabelledScans(config(dataset), module(dataset).model)
    data.processor.config.__dict__["labels"] = ("background", "body")
    record = data.split("train")[0]
    with pytest.raises(ValueError, match="holds the value 2, the network 2 labels"):
        data.prepared(record.image, record.label)


def test_a_coarser_grid_keeps_the_labels(dataset):
    volume = load_volume(dataset / "imagesTr" / "case0_0000.nii.gz")
    labels = read_labels(dataset / "labelsTr" / "case0.nii.gz", volume)
    assert ((volume.hu > -500) == (labels > 0)).all()
    scan = prepare(volume, labels, WorkingGrid(spacing=(24.0, 24.0, 24.0), window="wide", smallest=8))
    assert scan.image.shape == scan.labels.shape and set(scan.labels.unique().tolist()) == {0, 1, 2}


def test_settings_that_cannot_work_are_refused(dataset):
    with pytest.raises(ValueError, match="bottleneck to false"):
        SegmentModule(segmenter={"patch": 32})
    with pytest.raises(ValueError, match="no key 'spacing'"):
        SegmentModule(segmenter={"spacing": [1.0, 1.0, 1.0]})


def test_scores_and_names():
    truth = torch.tensor([[[[[0, 1], [2, 2]]]]])
    assert mean_dice(truth, truth, 4) == 1.0
    assert mean_dice(torch.zeros_like(truth), truth, 4) == 0.0
    found = torch.tensor([[[[[0, 1], [2, 0]]]]])
    torch.testing.assert_close(mean_dice(found, truth, 4), torch.tensor((1 + 2 / 3) / 2))
    assert names_in_order({0: "a", 2: "b"}) == ("a", "label 1", "b")
