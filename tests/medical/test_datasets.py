"""Readers of folders and tables, and splits that keep a patient together."""

from __future__ import annotations

import json

import pytest

from mm.medical.datasets import label_names, read_ct_rate, read_decathlon, read_m3d, read_nnunet, split_records


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def test_decathlon(tmp_path):
    touch(tmp_path, "imagesTr/a.nii.gz", "labelsTr/a.nii.gz", "imagesTs/b.nii.gz")
    listed = {
        "labels": {"0": "background", "1": "liver"},
        "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
        "test": ["./imagesTs/b.nii.gz"],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(listed))
    (record,) = read_decathlon(tmp_path / "dataset.json")
    assert record.image == (tmp_path / "imagesTr/a.nii.gz").resolve() and record.label.name == "a.nii.gz"
    assert read_decathlon(tmp_path / "dataset.json", "test")[0].label is None
    assert label_names(tmp_path / "dataset.json") == {0: "background", 1: "liver"}
    with pytest.raises(ValueError, match="no section 'validation'; there are training, test"):
        read_decathlon(tmp_path / "dataset.json", "validation")
    (tmp_path / "labelsTr/a.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match="label of entry 1"):
        read_decathlon(tmp_path / "dataset.json")


def test_nnunet(tmp_path):
    touch(tmp_path, "imagesTr/liver_1_0000.nii.gz", "imagesTr/liver_2_0000.nii.gz", "labelsTr/liver_1.nii.gz")
    touch(tmp_path, "labelsTr/liver_2.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "tumour": 2, "liver": 1}}))
    records = read_nnunet(tmp_path)
    assert [r.label.name for r in records] == ["liver_1.nii.gz", "liver_2.nii.gz"]
    assert label_names(tmp_path / "dataset.json") == {0: "background", 1: "liver", 2: "tumour"}
    touch(tmp_path, "imagesTr/liver_1_0001.nii.gz")
    with pytest.raises(ValueError, match="one channel"):
        read_nnunet(tmp_path)
    with pytest.raises(FileNotFoundError, match="imagesTs"):
        read_nnunet(tmp_path, "Ts")


def test_m3d(tmp_path):
    touch(tmp_path, "ct_case/000006/Axial_1.nii.gz", "ct_case/000006/Axial_2.nii.gz", "ct_case/000007/A.nii.gz")
    table = (
        "Image Path,Question,Choice A,Choice B,Choice C,Choice D,Answer,Answer Choice\n"
        'ct_case/000006/Axial_1.nii.gz,"Which organ, if any?",Liver,Spleen,Kidney,None,,B\n'
        "ct_case/000006/Axial_2.nii.gz,Which plane?,axial,,,,axial,A\n"
        "ct_case/000007/A.nii.gz,Which plane?,axial,,,,axial,A\n"
    )
    (tmp_path / "vqa.csv").write_text(table)
    first, second, third = read_m3d(tmp_path / "vqa.csv")
    assert first.question == "Which organ, if any?" and first.choices[1] == first.answer == "Spleen"
    assert second.choices == ("axial",) and first.patient == second.patient != third.patient
    (tmp_path / "bad.csv").write_text("picture,question\na,b\n")
    with pytest.raises(ValueError, match="line 2 has no imagepath or image"):
        read_m3d(tmp_path / "bad.csv")
    (tmp_path / "empty.csv").write_text("image,question\n")
    with pytest.raises(ValueError, match="no rows"):
        read_m3d(tmp_path / "empty.csv")


def test_ct_rate_and_its_split(tmp_path):
    names = [f"train_{patient}_{scan}_1.nii.gz" for patient in range(40) for scan in "ab"]
    touch(tmp_path, *(f"{n.rsplit('_', 2)[0]}/{n.rsplit('_', 1)[0]}/{n}" for n in names[:40]), *names[40:])
    rows = [f'{name},"Findings {number // 2}.","Impression."' for number, name in enumerate(names)]
    rows[79] = f'{names[79]},"Findings 0.",Impression.'  # the last patient shares a report with the first
    (tmp_path / "reports.csv").write_text("VolumeName,Findings_EN,Impressions_EN\n" + "\n".join(rows))
    records = read_ct_rate(tmp_path / "reports.csv")
    assert len(records) == 80 and records[0].report == "Findings 0. Impression."
    assert "train_0" not in records[0].patient
    parts = split_records(records, fractions={"train": 0.5, "validation": 0.25, "test": 0.25})
    assert sum(map(len, parts.values())) == 80 and all(parts.values())
    of = {record.image.name: name for name, part in parts.items() for record in part}
    assert all(of[names[2 * k]] == of[names[2 * k + 1]] for k in range(40))
    assert of[names[0]] == of[names[79]]
