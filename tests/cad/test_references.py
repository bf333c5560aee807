"""A plane statement must name the plane that was meant, whatever rule chose it; and nothing is lost on the way."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest

from mm.cad import emit, from_deepcad, parse, resolve_planes, to_deepcad
from mm.cad.deepcad_json import DeepCadError
from mm.cad.program import AbsolutePlane, Arc, Circle, Extrude, Line, Loop, Program, RelativePlane


def polygon(*corners):
    return Loop(tuple(Line(corners[k], corners[(k + 1) % len(corners)]) for k in range(len(corners))))


def profile(rng):
    w, h = rng.randrange(8, 40) / 2, rng.randrange(8, 40) / 2
    outer = polygon((0.0, 0.0), (w, 0.0), (w, h), (0.0, h))
    kind = rng.randrange(4)
    if kind == 0:
        return (outer, polygon((1.0, 1.0), (2.5, 1.0), (1.5, 3.0)))
    if kind == 1:
        return (outer, Loop((Circle((w / 2, h / 2), 1.5),)))
    if kind == 2:
        return (Loop((Line((0.0, 0.0), (w, 0.0)), Arc((w, 0.0), (0.0, 0.0), (w / 2, w / 2)))),)
    return (outer,)


def random_part(seed):
    """Extrudes on all kinds of references: signed, symmetric and two-sided extents, turned, reversed, on hole walls."""
    rng = random.Random(seed)
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0] if seed % 3 == 0 else np.eye(3)
    normal, x_axis = (tuple(float(v) for v in basis[:, i]) for i in (2, 0))
    plane = AbsolutePlane((rng.randrange(-20, 20) * 1.0, 3.0, -7.0), normal, x_axis)
    extrudes = []
    for index in range(6):
        if index:
            target = rng.randrange(index)
            kind = rng.choice(("sameplane", "extent_one", "extent_two", "line"))
            lines = [
                (j, k)
                for j, loop in enumerate(extrudes[target].loops)
                for k, curve in enumerate(loop.curves)
                if isinstance(curve, Line)
            ]
            origin = (rng.randrange(-6, 7) / 2, rng.randrange(-6, 7) / 2)
            angle = rng.choice((0.0, 0.3, math.pi / 2, -2.5, math.pi))
            line = rng.choice(lines) if kind == "line" else None
            plane = RelativePlane(target, origin, kind, line, rng.random() < 0.3, angle)
        one = rng.choice((1, -1)) * rng.randrange(2, 20) / 2
        extent_type = rng.randrange(3)
        two = rng.randrange(1, 9) / 2 if extent_type == 2 else 0.0
        extrudes.append(Extrude(plane, profile(rng), min(index, 1), extent_type, one, two))
    return Program(tuple(extrudes))


def worst(program, expected):
    """Largest distance of origins (mm) and of directions."""
    origins, axes = [0.0], [0.0]
    for a, b in zip(resolve_planes(program), expected, strict=True):
        origins.append(float(np.linalg.norm(np.subtract(a.origin, b.origin))))
        axes += [
            float(np.linalg.norm(np.subtract(getattr(a, k), getattr(b, k)))) for k in ("normal", "x_axis", "y_axis")
        ]
    return max(origins), max(axes)


def test_improved_references_mean_the_same_plane():
    kinds, shifted, holes = Counter(), 0, 0
    for seed in range(150):
        part = random_part(seed)
        truth = resolve_planes(part)
        found = from_deepcad(to_deepcad(part), references="improved")
        assert worst(found, truth)[0] < 1e-9 and worst(found, truth)[1] < 1e-9
        printed = parse(emit(found))
        origin, axis = worst(printed, truth)
        assert origin < 1e-3 and axis < 3e-4, seed
        for extrude in found.extrudes:
            plane = extrude.plane
            kinds[getattr(plane, "kind", "absolute")] += 1
            if isinstance(plane, RelativePlane):
                shifted += plane.kind == "extent_one" and math.hypot(*plane.origin) > 0.1
                holes += plane.kind == "line" and plane.line[0] > 0
    assert set(kinds) == {"absolute", "sameplane", "extent_one", "extent_two", "line"}
    assert min(kinds.values()) > 10 and shifted > 10 and holes > 3


def test_official_references_mean_the_same_plane():
    kinds = Counter()
    for seed in range(60):
        part = random_part(seed)
        found = from_deepcad(to_deepcad(part))
        origin, axis = worst(found, resolve_planes(part))
        assert origin < 1e-3 and axis < 1e-4, seed
        kinds.update(getattr(extrude.plane, "kind", "absolute") for extrude in found.extrudes)
    assert {"absolute", "sameplane", "line"} <= set(kinds)


def test_a_shifted_origin_on_the_upper_face():
    """The published rule only finds a face straight above the old origin."""
    block = Extrude(
        AbsolutePlane((0.0, 0.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)), profile(random.Random(3)), 0, 0, 5.0
    )
    pin = Extrude(
        AbsolutePlane((2.0, 3.0, 5.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)), (Loop((Circle((0.0, 0.0), 1.0),)),), 1, 0, 2.0
    )
    document = to_deepcad(Program((block, pin)))
    plane = from_deepcad(document, references="improved").extrudes[1].plane
    assert (plane.kind, plane.extrude) == ("extent_one", 0) and plane.origin == pytest.approx((2.0, 3.0))
    assert isinstance(from_deepcad(document).extrudes[1].plane, AbsolutePlane)


def test_a_negative_extent_names_the_right_side():
    """Defect D4: over a negative extent, a plane on the other side is no face."""
    block = Extrude(
        AbsolutePlane((0.0, 0.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)), profile(random.Random(3)), 0, 0, -5.0
    )
    above = Extrude(AbsolutePlane((0.0, 0.0, 5.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)), block.loops, 1, 0, 2.0)
    below = Extrude(AbsolutePlane((0.0, 0.0, -5.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)), block.loops, 1, 0, 2.0)
    document = to_deepcad(Program((block, above, below)))
    legacy = from_deepcad(document, frames="legacy")
    assert legacy.extrudes[1].plane.kind == "extent_one"
    assert resolve_planes(legacy)[1].origin == pytest.approx((0, 0, -5))
    for references in ("official", "improved"):
        assert (
            worst(from_deepcad(document, references=references), resolve_planes(Program((block, above, below))))[0]
            < 1e-9
        )


# round trips ---------------------------------------------------------------------------------------------------


def flat(data, path=""):
    if isinstance(data, dict):
        return [item for key in data for item in flat(data[key], f"{path}.{key}")]
    if isinstance(data, list):
        return [item for i, value in enumerate(data) for item in flat(value, f"{path}.{i}")]
    return [(path, data)]


def assert_same_document(a, b, tolerance):
    a, b = dict(flat(a)), dict(flat(b))
    assert list(a) == list(b)
    words = [path for path, value in a.items() if isinstance(value, str)]
    assert [a[path] for path in words] == [b[path] for path in words]
    paths = [path for path in a if path not in set(words)]
    np.testing.assert_allclose([a[p] for p in paths], [b[p] for p in paths], atol=tolerance, rtol=0)


def test_documents_survive_a_round_trip(parts):
    """JSON -> program -> JSON: equal to 1e-12 m with exact frames, loops already canonical."""
    for part in parts:
        document = to_deepcad(from_deepcad(part.deepcad, references="improved"))
        assert_same_document(to_deepcad(from_deepcad(document, references="improved")), document, 1e-12)
        assert_same_document(to_deepcad(from_deepcad(document)), document, 2e-6)


def test_vectors_survive_a_round_trip():
    """vector -> program -> vector, level by level."""
    for seed in range(120):
        vector = to_deepcad(random_part(seed), "vector")
        assert vector.shape[1] == 17 and vector.max() < 256 and (vector[:, 0] == 5).sum() == 6
        for references in ("official", "improved"):
            program = from_deepcad(vector, references=references)
            assert np.array_equal(to_deepcad(program, "vector", scale="keep"), vector), seed


def test_vectors_that_make_no_sense():
    good = to_deepcad(from_deepcad(to_deepcad(random_part(1))), "json")
    vector = np.array(
        [
            [4] + [-1] * 16,
            [2, 140, 128, -1, -1, 12] + [-1] * 11,
            [5] + [-1] * 5 + [200] * 3 + [128] * 3 + [64, 160, 128, 0, 0],
        ]
    )
    assert len(from_deepcad(vector).extrudes) == 1 and good
    for broken in (
        vector[:, :5],
        vector[:2],
        vector[2:],
        vector[:0],
        np.array([["a"] * 17]),
        np.vstack([vector[1:], vector]),
    ):
        with pytest.raises(DeepCadError):
            from_deepcad(broken)


def test_documents_that_make_no_sense(parts):
    import copy

    def broken(change):
        data = copy.deepcopy(parts[0].deepcad)
        change(data, next(e for e in data["entities"].values() if e["type"] == "ExtrudeFeature"),
               next(e for e in data["entities"].values() if e["type"] == "Sketch"))  # fmt: skip
        return data

    changes = {
        "no 'sequence'": lambda d, e, s: d.pop("sequence"),
        "no extrude": lambda d, e, s: d.update(sequence=[]),
        "entities has no 'nowhere'": lambda d, e, s: d["sequence"].append({"entity": "nowhere"}),
        "operation must be": lambda d, e, s: e.update(operation="WeldFeatureOperation"),
        "must start on its profile plane": lambda d, e, s: e.update(start_extent={"type": "OffsetStartDefinition"}),
        "has no 'profiles'": lambda d, e, s: [
            x.pop("profiles", None) for x in d["entities"].values() if x["type"] == "Sketch"
        ],
        "must be finite": lambda d, e, s: e["extent_one"]["distance"].update(value=float("nan")),
        "is str": lambda d, e, s: e["extent_one"]["distance"].update(value="1"),
        "sketches and extrudes, found Fillet": lambda d, e, s: e.update(type="Fillet"),
    }
    for message, change in changes.items():
        with pytest.raises(DeepCadError, match=message):
            from_deepcad(broken(change))


def test_tapered_extrudes_are_announced(parts):
    import copy

    data = copy.deepcopy(parts[0].deepcad)
    next(e for e in data["entities"].values() if e["type"] == "ExtrudeFeature")["extent_one"]["taper_angle"] = {
        "value": 0.1
    }
    assert "taper" in from_deepcad(data).notices[0].message
