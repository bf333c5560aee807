"""Splits by patient."""

from __future__ import annotations

import pytest

from mm.medical.splits import split_by_patient, split_of_patient


def test_scans_of_a_patient_stay_together_and_shares_hold():
    patients = [f"patient {number // 3}" for number in range(3000)]
    found = split_by_patient(patients)
    assert sorted(index for part in found.values() for index in part) == list(range(3000))
    sides = {name: {patients[index] for index in part} for name, part in found.items()}
    assert not sides["train"] & sides["test"] and not sides["train"] & sides["validation"]
    assert 0.87 < len(found["train"]) / 3000 < 0.93


def test_a_patient_keeps_its_split_when_data_grows():
    assert all(split_of_patient(f"p{n}") == split_of_patient(f"p{n}") for n in range(20))
    few, many = split_by_patient([f"p{n}" for n in range(50)]), split_by_patient([f"p{n}" for n in range(100)])
    assert all(set(few[name]) <= set(many[name]) for name in few)
    assert split_by_patient([f"p{n}" for n in range(100)], seed=1) != many


def test_equal_reports_pull_patients_together():
    patients = [f"p{number}" for number in range(200)]
    reports = [f"Report {number // 2}  of\nmany." for number in range(200)]
    found = split_by_patient(patients, reports=reports)
    side = {index: name for name, part in found.items() for index in part}
    assert all(side[number] == side[number + 1] for number in range(0, 200, 2))
    blank = split_by_patient(patients, reports=[""] * 200)
    assert blank == split_by_patient(patients), "patients without a report are not one group"


def test_wrong_shares_are_refused():
    with pytest.raises(ValueError, match="add up to 1"):
        split_of_patient("a", fractions={"train": 0.5, "test": 0.1})
    with pytest.raises(ValueError, match="2 patients, but 1 reports"):
        split_by_patient(["a", "b"], reports=["x"])
