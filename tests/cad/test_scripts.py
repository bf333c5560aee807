"""Scripts of other systems: valid Python, and the right solid where the system is installed."""

from __future__ import annotations

import ast
import math
import re
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from mm.cad import export_text, parse
from mm.cad.examples import PLATE

TWO_SIDED = PLATE.replace("type= 0, extent_one= 6.35, extent_two= 0.", "type= 2, extent_one= -20., extent_two= 20.")


@pytest.mark.parametrize("system", ["cadquery", "build123d", "freecad"])
def test_python_scripts_are_python(parts, system):
    for part in parts[:8]:
        script = export_text(parse(part.text), system)
        names = {node.id for node in ast.walk(ast.parse(script)) if isinstance(node, ast.Name)}
        assert {"result", f"prism{len(part.extrudes) - 1}"} <= names
        cuts = sum(extrude["operation"] == 2 for extrude in part.extrudes[1:])
        assert len(re.findall(r"result\.cut\(|result - ", script)) == cuts


@pytest.mark.skipif(not find_spec("build123d"), reason="build123d is not installed")
def test_build123d_builds_the_same_volume(parts, stored_json):
    """Arcs, holes, side planes, cuts; one process for all, because the import takes most of the time."""
    names = ("00280150", "00005081", "00809394", "00003877")
    chosen = [part for part in parts if part.name in names]
    script = "".join(export_text(parse(part.text), "build123d") + "print(result.volume)\n" for part in chosen)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    expected = [stored_json(f"{part.name}.resolved.json")["solid"]["program"]["volume"] for part in chosen]
    np.testing.assert_allclose([float(line) for line in done.stdout.split()], expected, rtol=1e-6)


def test_cadquery_text():
    script = export_text(parse(PLATE), "cadquery")
    assert ".moveTo(0, 0).circle(31.75)" in script and ".extrude(6.35)" in script
    assert "offset=-20" in export_text(parse(TWO_SIDED), "cadquery")
    assert ".extrude(20)" in export_text(parse(TWO_SIDED), "cadquery")  # the union of both sides


def test_freecad_places_prisms_by_a_matrix(parts):
    script = export_text(parse(parts[0].text), "freecad")
    matrix = [float(v) for v in re.search(r"App\.Matrix\(([^)]*)\)", script)[1].split(",")]
    np.testing.assert_allclose(np.reshape(matrix, (4, 4))[:3, 2], (0, -1, 0), atol=1e-12)


def test_openscad_polygons_approach_the_circle():
    script = export_text(parse(PLATE), "openscad", chord_angle=math.pi / 180)
    outer, inner = (np.array(ast.literal_eval(f"[{m}]")) for m in re.findall(r"polygon\(\[(.*?)\]\);", script))
    for points, radius in ((outer, 31.75), (inner, 11.1125)):
        x, y = points.T
        area = 0.5 * abs(x @ np.roll(y, 1) - y @ np.roll(x, 1))
        assert area == pytest.approx(math.pi * radius**2, rel=1e-3)
    assert script.count("{") == script.count("}") and script.endswith("step0();\n")


def test_unknown_system():
    with pytest.raises(ValueError, match=r"one of cadquery"):
        export_text(parse(PLATE), "solidworks")
