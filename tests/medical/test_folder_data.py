"""Own scans with reports, and lists with labels, as training data."""

from __future__ import annotations

from pathlib import Path

import lightning
import numpy as np
import pytest
import torch

nibabel = pytest.importorskip("nibabel")
pytest.importorskip("monai")

from mm.medical.folder_data import MedicalFolder, MedicalFolderConfig, RecordsConfig, split_of_records  # noqa: E402
from mm.medical.folder_module import OwnVelvetModule  # noqa: E402
from mm.medical.own_scans import read_own_scans  # noqa: E402
from mm.medical.phantom_reports import report  # noqa: E402
from mm.medical.phantoms import phantom  # noqa: E402
from mm.medical.velvet.data import phantom_tokenizer  # noqa: E402
from mm.medical.velvet.objectives import ObjectiveConfig  # noqa: E402


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """Twelve patients, the first with two scans; patient 11 has no report."""
    folder = tmp_path_factory.mktemp("own")
    for number in range(13):
        place = folder / f"p{max(0, number - 1)}"
        place.mkdir(exist_ok=True)
        found = phantom(seed=2 * number, size=16)
        nibabel.save(nibabel.Nifti1Image(found.hu, found.affine), place / f"{number}.nii.gz")
        if number < 12:
            (place / f"{number}.txt").write_text(f"Name: Eelina {number}\n" + " ".join(report(found.case)))
    return folder


def config(scans: Path, **changes) -> MedicalFolderConfig:
    records = RecordsConfig(path=str(scans), validation=0.25, test=0.25)
    return MedicalFolderConfig(**({"records": records, "size": 12, "batch_size": 3} | changes))


def test_scans_of_a_patient_stay_together_and_reports_are_scrubbed(scans):
    records = read_own_scans(scans)
    assert len(records) == 13 and records[0].patient == records[1].patient != records[2].patient
    assert not any("Eelina" in record.report for record in records) and "[REMOVED]" in records[0].report
    parts = split_of_records(config(scans).records)
    patients = [{record.patient for record in part} for part in parts.values()]
    assert sum(map(len, parts.values())) == 13 and len(parts["train"]) > 3
    assert not patients[0] & patients[1] and not patients[0] & patients[2] and not patients[1] & patients[2]


def test_a_table_names_scans_reports_and_patients(scans, tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("Scan,Report,Patient\np0/0.nii.gz,The liver is normal.,a\np3/4.nii.gz,A cyst.,a\n")
    records = read_own_scans(scans, table)
    assert [record.report for record in records] == ["The liver is normal.", "A cyst."]
    assert records[0].patient == records[1].patient
    table.write_text("Scan,Report\np9/none.nii.gz,A cyst.\n")
    with pytest.raises(FileNotFoundError, match="line 2"):
        read_own_scans(scans, table)


def test_batches_are_those_of_the_records_and_every_record_comes_once_per_pass(scans):
    data = MedicalFolder(config(scans), phantom_tokenizer())
    train = data.split("train")
    loader = data.train_dataloader()
    seen, needed = [], -(-len(train) // 3)
    for _, batch in zip(range(needed), loader, strict=False):
        assert batch["volume"].shape == (3, 1, 12, 12, 12) and batch["input_ids"].shape[0] == 3
        seen += list(batch["volume"])
    cubes = torch.stack([data.cubes(record) for record in train])
    which = [(cubes == one).flatten(1).all(1).nonzero().flatten().tolist() for one in seen[: len(train)]]
    assert sorted(index for found in which for index in found) == list(range(len(train)))


def test_a_killed_run_goes_on_with_the_batches_it_has_not_seen(scans):
    data = MedicalFolder(config(scans), phantom_tokenizer())
    loader = data.train_dataloader()
    every = []
    for number, batch in enumerate(loader):
        every.append(batch["input_ids"])
        if number < 2:
            loader.confirm()  # trained on; the third was only fetched
        if number == 4:
            break
    again = MedicalFolder(config(scans), phantom_tokenizer())
    again.load_state_dict(data.state_dict())
    assert torch.equal(next(iter(again.train_dataloader()))["input_ids"], every[2])


def test_squeezed_scans_are_kept_on_disk_without_a_name_and_refreshed(scans, tmp_path):
    data = MedicalFolder(config(scans, cache=str(tmp_path / "cache")), phantom_tokenizer())
    record = data.split("train")[0]
    first = data.cubes(record)
    kept = list((tmp_path / "cache").glob("*.npy"))
    assert len(kept) == 1 and not any(part in kept[0].name for part in record.image.parts[-2:])
    np.save(kept[0], np.zeros_like(np.load(kept[0])))
    assert data.cubes(record).max() == 0 and first.max() > 0  # read from the file, not from the scan
    record.image.touch()
    assert torch.equal(data.cubes(record), first)


def test_training_on_ten_scans_learns_and_saves_its_own_words(scans, tmp_path, capsys):
    from mm.cli import main

    vocabulary = tmp_path / "vocab.txt"
    assert main(["medical", "vocabulary", str(scans), "--out", str(vocabulary), "--size", "200"]) == 0
    assert "eelina" not in vocabulary.read_text() and "liver" in vocabulary.read_text().split()
    assert main(["medical", "vocabulary", str(scans), "--out", str(vocabulary)]) == 1
    capsys.readouterr()
    with pytest.raises(FileNotFoundError, match="mm medical vocabulary"):
        OwnVelvetModule(vocabulary=str(tmp_path / "none.txt"))
    off = ObjectiveConfig(views=0.0, rotation=0.0, reconstruction=0.0)
    module = OwnVelvetModule(vocabulary=str(vocabulary), objective=off, config={"vision_heads": False})
    assert module.model.tokenizer.vocabulary == vocabulary.read_text().split("\n")[:-1]
    data = MedicalFolder(config(scans, size=16, train_batches=6))
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                                enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(module, data)
    assert trainer.global_step == 6 and trainer.callback_metrics["val/loss"].isfinite()
    folder = module.model.save_pretrained(tmp_path / "m")
    assert (folder / "vocab.txt").read_text() == vocabulary.read_text()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "xml"}, "format must be one of"),
        ({"format": "m3d", "table": "a.csv"}, "table is for folder"),
        ({"validation": 0.6, "test": 0.5}, "leave a training part"),
    ],
)
def test_wrong_settings_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        RecordsConfig(**changes)
