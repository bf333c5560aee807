"""With only the core dependencies installed everything imports, and what is missing is named with its extra."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]

IMPORT_NAMES = {
    "liger-kernel": "liger_kernel",
    "cadquery-ocp-novtk": "OCP",
}
"""Distributions whose modules are called otherwise."""


def optional_modules() -> dict[str, set[str]]:
    """Top-level module -> extras that install it; `all` and `dev` only collect others, `docs` is of no use to code."""
    found: dict[str, set[str]] = {}
    for extra, requirements in PROJECT["optional-dependencies"].items():
        for requirement in requirements if extra not in ("all", "dev", "docs") else ():
            name = re.match(r"[\w.-]+", requirement)[0]
            found.setdefault(IMPORT_NAMES.get(name, name.replace("-", "_")), set()).add(extra)
    return found


OPTIONAL = optional_modules()


HIDE = f"""
import sys
from importlib.machinery import PathFinder
from importlib.metadata import DistributionFinder
hidden = set({sorted(OPTIONAL)!r})
class CoreOnly(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else PathFinder.find_spec(name, path, target)
    @classmethod
    def find_distributions(cls, context=DistributionFinder.Context()):
        name = (context.name or "").replace("-", "_").lower()
        return iter(()) if name in hidden else PathFinder.find_distributions(context)
sys.meta_path[sys.meta_path.index(PathFinder)] = CoreOnly
"""
"""No library of an extra can be found, as if it had never been installed."""

IMPORT_ALL = f"""
from importlib import import_module
from pkgutil import iter_modules
names = list({PACKAGES!r})
for package in {PACKAGES!r}:
    inside = iter_modules(import_module(package).__path__)
    names += [f"{{package}}.{{found.name}}" for found in inside if not found.ispkg]
for name in names:
    if name != "mm.__main__" and not name.endswith("_triton"):
        import_module(name)
"""

USES = {
    "peft": "from mm.backbone import LanguageBackbone; LanguageBackbone.tiny('llama').lora(rank=2)",
    "webdataset": "from mm.data import WebDatasetShards; WebDatasetShards('shard.tar')",
    "datasets": "from mm.data import HFDataset; HFDataset('folder')",
}
"""Library of the `train` extra -> code that cannot do without it."""

REPORT = """
import json
print(json.dumps({"count": len(names), "loaded": sorted(hidden & set(sys.modules)), "errors": errors}))
"""


@pytest.fixture(scope="module")
def core_only() -> dict[str, Any]:
    """What one interpreter without the extras says: importing everything once costs seconds."""
    uses = "errors = {}\n" + "".join(
        f"try:\n    {code}\nexcept ImportError as error:\n    errors[{library!r}] = str(error)\n"
        for library, code in USES.items()
    )
    program = HIDE + IMPORT_ALL + uses + REPORT
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_module_imports_with_the_core_alone(core_only):
    assert core_only["count"] > len(PACKAGES)
    assert core_only["loaded"] == []


@pytest.mark.parametrize("library", USES)
def test_a_missing_library_is_one_sentence_with_its_extra(core_only, library):
    assert f"needs {library}: pip install 'mm[train]'" in core_only["errors"][library]


def sources() -> list[Path]:
    folders = {package.split(".")[1] for package in PACKAGES if "." in package}
    return [path for name in ("mm", *sorted(folders)) for path in (ROOT / name).glob("**/*.py")]


def calls_of_require() -> list[tuple[str, str, str]]:
    """(place, module, extra) of every `require("module", extra="extra", ...)` in the package."""
    found = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "require":
                words = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
                if node.args and isinstance(node.args[0], ast.Constant) and "extra" in words:
                    place = f"{path.relative_to(ROOT)}:{node.lineno}"
                    found.append((place, node.args[0].value, words["extra"]))
    return found


def test_every_required_library_is_in_the_extra_that_its_error_names():
    calls = calls_of_require()
    assert {module for _, module, _ in calls} >= {"peft", "webdataset", "datasets"}
    wrong = [call for call in calls if call[2] not in OPTIONAL.get(call[1].partition(".")[0], ())]
    assert not wrong, f"the error would name an extra that does not install the library: {wrong}"


BEHIND_A_DOOR = {
    "cad/kernel/occ.py": "OCP",
    "cad/drawing/hidden_lines.py": "OCP",
    "cad/kernel/manifold.py": "manifold3d",
}
"""Files that require a library where they are entered and name its many modules in the functions behind."""


def test_optional_libraries_are_imported_only_through_require():
    """A bare import would end in a ModuleNotFoundError that names no extra. Type checks and guarded tries are fine.

    Files named *_triton.py are GPU kernels: the dispatcher loads them where triton is installed, and nothing else may.
    """
    bare = []
    for path in sources():
        if path.stem.endswith("_triton"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        guarded = [
            block
            for block in ast.walk(tree)
            if isinstance(block, ast.Try) or (isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING")
        ]
        skipped = {id(node) for block in guarded for node in ast.walk(block)}
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            used = {name.partition(".")[0] for name in names} & set(OPTIONAL)
            if id(node) not in skipped and used - {BEHIND_A_DOOR.get(str(path.relative_to(ROOT)))}:
                bare.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not bare, f"use mm.extras.require: {bare}"
