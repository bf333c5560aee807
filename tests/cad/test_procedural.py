"""Procedural parts: the same for a seed, apart between splits, buildable, and of one size."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mm.cad import emit, parse, validate
from mm.cad.procedural import RICH, TINY, PartConfig, sample_part
from mm.cad.program import Arc, Circle, ExtentType, Line, Operation
from mm.data.split import Split

SEEDS = range(160)


def test_a_part_is_a_function_of_its_seed():
    assert [sample_part(seed) for seed in range(8)] == [sample_part(seed) for seed in range(8)]
    assert len({emit(sample_part(seed).program) for seed in SEEDS}) > 0.9 * len(SEEDS)


def test_splits_never_meet():
    for name in ("train", "validation", "test"):
        assert sample_part(Split(name).seed(3)).split == name
    parts = {name: [sample_part(Split(name).seed(i)).program for i in range(30)] for name in ("train", "test")}
    assert parts["train"] != parts["test"]


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
