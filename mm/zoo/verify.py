"""Do the weights that ship still score what their folder states? Formats: README.md beside this file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

import mm
from mm.catalog import EVALUATORS
from mm.checkpoint import WEIGHTS_FILE, load, read_json, shipped_names, write_aside, write_json

METRICS_FILE = "metrics.json"
RECIPE_FILE = "recipe.yaml"
RECIPE_KEYS = ("command", "data", "licence", "made_with")
LARGEST_MB = 4.0
LARGEST_TOTAL_MB = 30.0


def shipped(names: Sequence[str] = (), root: Path | None = None) -> list[Path]:
    """Folders of shipped weights.

    Args:
        names: Which; empty means all.
        root: Where they stand; default: inside the package.

    Raises:
        ValueError: an unknown name, or all weights together are larger than 30 MB.
    """
    root = root or Path(str(files("mm.zoo")))
    present = shipped_names() if root == Path(str(files("mm.zoo"))) else sorted(p.name for p in root.iterdir())
    unknown = [name for name in names if name not in present]
    if unknown:
        raise ValueError(f"no shipped weights {', '.join(unknown)}; there are: {', '.join(present) or 'none'}")
    total = sum(size_mb(root / name) for name in present)
    if total > LARGEST_TOTAL_MB:
        raise ValueError(f"shipped weights take {total:.1f} MB together, at most {LARGEST_TOTAL_MB:.0f} are allowed")
    return [root / name for name in (names or present)]


def size_mb(folder: Path) -> float:
    """Size of the weights in megabytes (1e6 bytes)."""
    return (folder / WEIGHTS_FILE).stat().st_size / 1e6


def describe(folder: Path) -> dict[str, Any]:
    """What a folder states about itself.

    Raises:
        ValueError: recipe or metrics are missing or incomplete.
    """
    recipe, stated = read_recipe(folder), read_metrics(folder)
    return {"name": folder.name, "size_mb": round(size_mb(folder), 2), "command": recipe["command"], **stated}


def read_recipe(folder: Path) -> dict[str, str]:
    """How the weights were made.

    Raises:
        ValueError: no recipe, or one without command, data, licence and made_with.
    """
    path = folder / RECIPE_FILE
    recipe = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    missing = [key for key in RECIPE_KEYS if not (isinstance(recipe, dict) and recipe.get(key))]
    if missing:
        raise ValueError(f"{path}: states no {', '.join(missing)}; see README.md of the zoo")
    return recipe  # type: ignore[return-value]


def read_metrics(folder: Path) -> dict[str, Any]:
    """Stated scores: {"seed": int, "metrics": {name: {"value": float, "tolerance": float}}}.

    Raises:
        ValueError: no such file, no score in it, or a score without value and tolerance.
    """
    path = folder / METRICS_FILE
    if not path.is_file():
        raise ValueError(f"{path}: weights ship with their scores only; see README.md of the zoo")
    data = read_json(path)
    metrics = data.get("metrics")
    complete = isinstance(metrics, dict) and metrics and all({"value", "tolerance"} <= set(m) for m in metrics.values())
    if not complete or not isinstance(data.get("seed"), int):
        raise ValueError(f"{path}: needs a seed and, for every metric, value and tolerance")
    return {"seed": data["seed"], "metrics": metrics}


def write_metrics(
    folder: Path, found: Mapping[str, float], *, seed: int, tolerance: Mapping[str, float] | float
) -> None:
    """State the scores of new weights.

    Args:
        folder: Of the weights.
        found: What the evaluator gave, metric -> value.
        seed: Given to the evaluator.
        tolerance: Largest absolute difference that `verify` accepts, for all metrics or one each.
    """
    allowed = tolerance if isinstance(tolerance, Mapping) else dict.fromkeys(found, tolerance)
    metrics = {name: {"value": value, "tolerance": allowed[name]} for name, value in found.items()}
    with write_aside(folder / METRICS_FILE) as path:
        write_json(path, {"seed": seed, "mm_version": mm.__version__, "metrics": metrics})


def verify(folder: Path) -> list[dict[str, Any]]:
    """Load weights, evaluate them again and compare.

    Returns:
        Rows {name, metric, stated, found, tolerance, ok}; the size is one of them. A metric that is stated but not
        found, or found but not stated, is not ok.

    Raises:
        ValueError: nothing is registered that could evaluate these weights, or the folder is incomplete.
    """
    read_recipe(folder)
    stated = read_metrics(folder)
    evaluate = EVALUATORS.get(folder.name)
    found = evaluate(load(folder), seed=stated["seed"])
    rows = [
        _row(folder.name, name, stated["metrics"].get(name), found.get(name)) for name in {**stated["metrics"], **found}
    ]
    size = size_mb(folder)
    limit = {"name": folder.name, "metric": "size_mb", "stated": LARGEST_MB, "found": size, "tolerance": 0.0}
    return [*rows, limit | {"ok": size <= LARGEST_MB}]


def _row(name: str, metric: str, stated: Mapping[str, float] | None, found: float | None) -> dict[str, Any]:
    value = stated["value"] if stated else None
    tolerance = stated["tolerance"] if stated else None
    ok = value is not None and tolerance is not None and found is not None
    ok = ok and math.isfinite(found) and abs(found - value) <= tolerance  # type: ignore[operator, arg-type]
    return {"name": name, "metric": metric, "stated": value, "found": found, "tolerance": tolerance, "ok": ok}
