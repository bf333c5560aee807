"""Phantoms: pure functions of a seed, anatomy in the right places and intensities, reports that tell what is there."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest

from mm.data.split import Split
from mm.medical.phantom_reports import attribute_words, described, report, vocabulary
from mm.medical.phantoms import CHOICES, LABELS, PLACES, Case, Finding, change_one, draw_case, phantom, render

AVERAGE = {
    **dict.fromkeys(("body", "depth", "lungs", "liver", "spleen", "kidneys", "heart", "spine"), 1.0),
    **{f"{name}_{axis}": 0.0 for name in ("organs", "lesion") for axis in "xyz"},
    **{f"lesion_{number}": 0.0 for number in range(6)},
    "noise": 0.0,
    "streaks": 0.0,
}


def case_with(place: str | None = None, contrast: str = "enhanced", **attributes: str) -> Case:
    findings = [Finding("scan", {"contrast": contrast})] + ([] if place is None else [Finding(place, attributes)])
    return Case(seed=0, findings=tuple(findings), anatomy=AVERAGE)


def middle(mask: np.ndarray) -> np.ndarray:
    """Centre of a mask, fractions of the edge."""
    return np.argwhere(mask).mean(0) / mask.shape[0]


def test_same_seed_same_scan():
    one, again, other = phantom(7, 32), phantom(7, 32), phantom(8, 32)
    assert np.array_equal(one.hu, again.hu) and np.array_equal(one.labels, again.labels)
    assert not np.array_equal(one.hu, other.hu)


def test_organs_lie_where_they_belong_and_look_so():
    scan = render(case_with(), 64)
    place = {name: middle(scan.labels == value) for value, name in enumerate(LABELS) if value}
    tone = {name: np.median(scan.hu[scan.labels == value]) for value, name in enumerate(LABELS) if value}
    assert place["liver"][0] > 0.6 and place["spleen"][0] < 0.4, "first axis must grow to the patient's right"
    assert place["spine"][1] < 0.4 < place["heart"][1], "second axis must grow to the front"
    assert place["kidneys"][2] < place["liver"][2] < place["lungs"][2], "third axis must grow to the head"
    assert tone["lungs"] < -700 and tone["spine"] > 300 and 140 < tone["kidneys"] < 230 and 90 < tone["liver"] < 135
    assert (scan.hu < -950).mean() > 0.2 and scan.hu[0, 0, 0] < -900
    assert np.allclose(scan.affine @ [31.5, 31.5, 31.5, 1], [0, 0, 0, 1])


def test_contrast_medium_brightens_vessels_and_kidneys():
    plain, enhanced = (render(case_with(contrast=word), 48) for word in ("unenhanced", "enhanced"))
    for name in ("kidneys", "aorta", "liver"):
        where = enhanced.labels == LABELS.index(name)
        assert np.median(enhanced.hu[where]) > np.median(plain.hu[where]) + 40


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("part", ["upper", "lower"])
@pytest.mark.parametrize("place", ["lung", "kidney"])
def test_side_and_part_of_a_finding(place, side, part):
    attributes = {"side": side, "part": part, "kind": CHOICES[place]["kind"][0]}
    if place == "lung":
        attributes["size"] = "large"
    scan = render(case_with(place, **attributes), 64)
    organ = middle(scan.labels == LABELS.index({"lung": "lungs", "kidney": "kidneys"}[place]))
    found = middle(scan.lesions == 2)
    assert (found[0] > 0.5) == (side == "right")
    assert (found[2] > organ[2]) == (part == "upper")


@pytest.mark.parametrize(
    ("place", "attribute", "low", "high"),
    [
        ("lung", "kind", "solid", "calcified"),
        ("liver", "kind", "hypodense", "hyperdense"),
        ("kidney", "kind", "cyst", "stone"),
        ("spine", "kind", "lytic", "sclerotic"),
        ("aorta", "kind", "dilated", "calcified"),
    ],
)
def test_intensity_of_a_finding(place, attribute, low, high):
    tones = []
    for value in (low, high):
        attributes = {name: values[0] for name, values in CHOICES[place].items()} | {attribute: value}
        scan = render(case_with(place, **attributes), 64)
        tones.append(scan.hu[scan.lesions == 2].max())
    assert tones[1] > tones[0] + 100


@pytest.mark.parametrize("place", ["lung", "pleura", "liver"])
def test_size_of_a_finding(place):
    voxels = []
    for size in ("small", "large"):
        attributes = {name: values[0] for name, values in CHOICES[place].items()} | {"size": size}
        voxels.append((render(case_with(place, **attributes), 64).lesions == 2).sum())
    assert voxels[1] > 1.5 * voxels[0] > 0


def test_the_spleen_is_enlarged():
    sizes = [(render(case, 48).labels == LABELS.index("spleen")).sum() for case in (case_with(), case_with("spleen"))]
    assert sizes[1] > 2 * sizes[0]


def test_every_finding_is_visible():
    for seed in range(60):
        scan = phantom(Split("validation").seed(seed), 48)
        for number, finding in enumerate(scan.case.findings):
            assert finding.place == "scan" or (scan.lesions == number + 1).sum() >= 4, (seed, finding)


def test_a_changed_case_differs_in_one_attribute_and_one_word():
    for seed in range(30):
        case = draw_case(seed)
        other = change_one(case, seed)
        pairs = list(zip(case.findings, other.findings, strict=True))
        changes = [name for a, b in pairs for name in a.attributes if a.attributes[name] != b.attributes[name]]
        assert len(changes) == 1
        words = [" ".join(report(one)).split() for one in (case, other)]
        assert sum(a != b for a, b in zip(*words, strict=True)) == 1


def test_attributes_are_even_and_independent():
    cases = [draw_case(Split("train").seed(number)) for number in range(1500)]
    lungs = [found for case in cases if (found := case.of("lung"))]
    assert 0.45 < len(lungs) / len(cases) < 0.55
    for name, values in CHOICES["lung"].items():
        share = np.mean([found[name] == values[0] for found in lungs])
        assert 0.44 < share < 0.56, name
    both = np.mean([(found["side"] == "left") == (found["part"] == "upper") for found in lungs])
    assert 0.44 < both < 0.56


def test_reports_name_every_finding_with_its_attributes():
    for seed in range(40):
        case = draw_case(seed)
        sentences = dict(entry for entry in described(case) if entry[0] is not None)
        assert sorted(sentences) == list(range(len(case.findings)))
        for number, finding in enumerate(case.findings):
            assert all(value in sentences[number].lower() for value in finding.attributes.values())
        words = set(re.findall(r"[a-z]+|[.,]", " ".join(report(case)).lower()))
        assert words <= set(vocabulary())
    assert attribute_words() < set(vocabulary()) and len(PLACES) == 7


def test_wording_varies_with_its_own_seed():
    case = draw_case(0)
    assert len({tuple(report(case, wording)) for wording in range(10)}) > 5


def test_noise_has_the_drawn_strength():
    case = case_with()
    noisy = Case(seed=0, findings=case.findings, anatomy={**case.anatomy, "noise": 20.0})
    difference = render(noisy, 48).hu.astype(float) - render(case, 48).hu
    inside = render(case, 48).labels == LABELS.index("liver")
    assert 18 < difference[inside].std() < 22


def test_speed():
    case = draw_case(0)
    render(case, 48)
    start = time.process_time()
    for _ in range(5):
        render(case, 48)
    assert (time.process_time() - start) / 5 < 0.05
