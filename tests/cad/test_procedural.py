"""Procedural parts: the same for a seed, apart between splits, buildable, and of one size."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from mm.cad import emit, parse, validate
from mm.cad.curves import loop_box
from mm.cad.procedural import RICH, TINY, PartConfig, owner, sample_part
from mm.cad.program import Arc, Circle, ExtentType, Line, Operation
from mm.data.split import Split

SEEDS = range(160)


def test_a_part_is_a_function_of_its_seed():
    assert [sample_part(seed) for seed in range(8)] == [sample_part(seed) for seed in range(8)]
    assert len({emit(sample_part(seed).program) for seed in SEEDS}) > 0.9 * len(SEEDS)


def test_splits_never_meet():
    for name in ("train", "validation", "test"):
        assert sample_part(Split(name).seed(3)).split == name
    names = ("train", "validation", "test")
    texts = {name: {emit(sample_part(seed).program) for seed in Split(name).seeds[:200]} for name in names}
    assert len(texts["train"]) < 200, "parts come again within a split: seeds alone would not keep the splits apart"
    for one, other in combinations(names, 2):
        assert not texts[one] & texts[other]


def test_a_family_of_one_part_is_refused_where_it_would_be_in_two_splits():
    single = PartConfig(families=("disc",), planes=("xy",), longest=12, shortest=4, holes=False, second=0.0)
    few = {emit(sample_part(seed, single).program) for seed in range(60)}
    assert len(few) < 30
    narrow = replace(single, families=("slot",), longest=12)
    found = 0
    for split in ("train", "validation", "test"):
        try:
            assert owner(sample_part(Split(split).seed(0), narrow).program) == split
        except ValueError as error:
            assert "too few different parts" in str(error)
            found += 1
    assert found < 3


def test_the_floor_of_a_pocket_shows():
    """No deeper than half its shorter side: from (1, 1, 1) at least half of that side remains in sight."""
    seen = 0
    for seed in range(2000):
        extrudes = sample_part(seed).program.extrudes
        if len(extrudes) == 2 and extrudes[1].operation == Operation.CUT:
            low, high = loop_box(extrudes[1].loops[0].curves)
            assert -extrudes[1].extent_one <= min(high[0] - low[0], high[1] - low[1]) / 2
            seen += 1
    assert seen > 50


def test_legs_have_several_widths():
    inner = {sample_part(seed, PartConfig(families=("angle",))).program.extrudes[0].loops[0] for seed in range(300)}
    shares = {round(loop.curves[1].end[1] / loop.curves[4].start[1], 1) for loop in inner}
    assert len(shares) > 3


@pytest.mark.parametrize("config", [TINY, RICH])
def test_texts_come_back_and_nothing_is_wrong_with_them(config):
    for seed in SEEDS[:60]:
        program = sample_part(seed, config).program
        assert parse(emit(program, style="canonical")) == parse(emit(program))
        errors = [notice for notice in validate(program) if notice.severity == "error"]
        assert not errors, (seed, errors)


@pytest.mark.parametrize("config", [TINY, RICH])
def test_every_part_builds_and_fills_the_same_box(config):
    pytest.importorskip("manifold3d", reason="parts are built by the mesh kernel: pip install 'mm[cad]'")
    from mm.cad.kernel.evaluate import features
    from mm.cad.kernel.manifold import build_mesh

    for seed in SEEDS[:80]:
        mesh = build_mesh(features(sample_part(seed, config).program))
        assert mesh.is_closed and mesh.volume > 0
        assert np.ptp(mesh.bounds, axis=0).max() == pytest.approx(config.longest, rel=0.01), seed


def test_tiny_parts_have_whole_numbers_only():
    for seed in SEEDS:
        for curve in sample_part(seed).program.curves():
            values = (*curve.center, curve.radius) if isinstance(curve, Circle) else (*curve.start, *curve.end)
            assert all(value == int(value) for value in (*values, *(curve.mid if isinstance(curve, Arc) else ())))


def test_all_that_a_configuration_names_occurs():
    parts = [sample_part(seed, RICH) for seed in range(600)]
    assert {part.family for part in parts} == set(RICH.families)
    assert {type(curve) for part in parts for curve in part.program.curves()} == {Line, Arc, Circle}
    extrudes = [extrude for part in parts for extrude in part.program.extrudes]
    assert {extrude.extent_type for extrude in extrudes} == set(ExtentType)
    assert {extrude.operation for extrude in extrudes} == {Operation.NEW_BODY, Operation.JOIN, Operation.CUT}
    holes = Counter(len(part.program.extrudes[0].loops) - 1 for part in parts)
    assert {0, 1, 2, 4} <= set(holes)
    assert len({part.program.extrudes[0].plane for part in parts}) == 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"families": ("sphere",)}, "families"), ({"planes": ()}, "planes"), ({"shortest": 20}, "shortest")],
)
def test_wrong_configurations_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        PartConfig(**wrong)
