"""Splits by patient: all scans of a person, and all scans that share a report, go to the same side.

A split by image leaks: series of one study carry one report, so a model can recognise the text it was trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import cast, get_args

from mm.data.split import SplitName

FRACTIONS: dict[str, float] = {"train": 0.9, "validation": 0.05, "test": 0.05}


def split_of_patient(patient: str, *, seed: int = 0, fractions: Mapping[str, float] | None = None) -> SplitName:
    """Which split a patient belongs to; depends on nothing but the id and the seed, so that data can grow.

    Args:
        patient: Any identifier; only its hash is used.
        seed: Another seed gives another split.
        fractions: Expected share of each split, adding up to 1.

    Raises:
        ValueError: unknown names, or shares that do not add up to 1.
    """
    fractions = fractions or FRACTIONS
    if set(fractions) - set(get_args(SplitName)) or abs(sum(fractions.values()) - 1) > 1e-6:
        raise ValueError(f"fractions must name {', '.join(get_args(SplitName))} and add up to 1, got {dict(fractions)}")
    digest = hashlib.sha256(f"{seed}:{patient}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    for name, share in fractions.items():
        place -= share
        if place < 0:
            return cast(SplitName, name)
    return cast(SplitName, list(fractions)[-1])


def split_by_patient(
    patients: Sequence[str],
    *,
    reports: Sequence[str] | None = None,
    seed: int = 0,
    fractions: Mapping[str, float] | None = None,
) -> dict[SplitName, list[int]]:
    """Indices of the scans of each split.

    Args:
        patients: Patient (or study) id of every scan.
        reports: Report of every scan; patients that share a report, blanks aside, are kept together.
        seed, fractions: See `split_of_patient`.

    Raises:
        ValueError: `reports` has another length.
    """
    if reports is not None and len(reports) != len(patients):
        raise ValueError(f"{len(patients)} patients, but {len(reports)} reports")
    group = _groups(patients, reports)
    found: dict[SplitName, list[int]] = {name: [] for name in get_args(SplitName)}
    for index, patient in enumerate(patients):
        found[split_of_patient(group[patient], seed=seed, fractions=fractions)].append(index)
    return found


def _groups(patients: Sequence[str], reports: Sequence[str] | None) -> dict[str, str]:
    """Patient -> smallest patient id of those it is linked with by equal reports."""
    parent = {patient: patient for patient in patients}

    def root(patient: str) -> str:
        while parent[patient] != patient:
            patient = parent[patient]
        return patient

    first: dict[str, str] = {}
    for patient, report in zip(patients, reports or [], strict=False):
        text = " ".join(report.split()).casefold()
        if text:
            one, other = sorted((root(first.setdefault(text, patient)), root(patient)))
            parent[other] = one
    return {patient: root(patient) for patient in parent}
