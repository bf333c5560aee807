"""The folder mapping: what is in the tree is in the package, under one name each."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOMAINS = ("encoders", "codecs", "pruning", "cad", "medical")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def packages_in_the_tree() -> set[str]:
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("mm/**/__init__.py")}
    for domain in (*DOMAINS, "configs"):
        found |= {
            ".".join(("mm", *path.parent.relative_to(ROOT).parts)) for path in ROOT.glob(f"{domain}/**/__init__.py")
        }
    return found


def test_every_package_of_the_tree_is_listed():
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages_in_the_tree()


def test_every_folder_with_code_is_a_package():
    for domain in ("mm", *DOMAINS):
        for path in (ROOT / domain).glob("**/*.py"):
            assert (path.parent / "__init__.py").is_file(), f"{path.relative_to(ROOT)} is in no package"


def test_every_data_file_of_the_tree_is_packaged():
    """A tokenizer without its chat template loads, and then cannot ask."""
    settings = PROJECT["tool"]["setuptools"]
    packaged = {
        path
        for package, patterns in settings["package-data"].items()
        for pattern in patterns
        for path in (ROOT / settings["package-dir"].get(package, package.replace(".", "/"))).glob(pattern)
    }
    for folder in ("mm", *DOMAINS, "configs"):
        for path in (ROOT / folder).rglob("*"):
            code = path.suffix in (".py", ".pyc") or path.is_dir() or path.name == ".gitkeep"
            assert code or path in packaged, f"{path.relative_to(ROOT)} is in no pattern of package-data"


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_import_uses_the_bare_folder_name(domain):
    """`import encoders.x` would give a second copy of every class."""
    for path in [*ROOT.glob("**/*.py")]:
        if {".venv", "build", "out"} & set(path.relative_to(ROOT).parts):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            words = line.split()
            bare = words[:1] in (["import"], ["from"]) and words[1].split(".")[0] == domain
            assert not bare or domain == "codecs", f"{path}:{number}: {line.strip()}"


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "tests")
    return done.stdout.strip()


def test_import_mm_loads_nothing_heavy():
    heavy = run(
        "import sys, mm; print([m for m in ('torch', 'numpy', 'transformers', 'lightning') if m in sys.modules])"
    )
    assert heavy == "[]"


def test_help_loads_no_torch():
    code = "import sys\nfrom mm.cli import main\nassert main(['--help']) == 0\nprint('torch' in sys.modules)"
    assert run(code).endswith("False")


def test_import_mm_takes_under_three_tenths_of_import_torch():
    """Both measured in fresh interpreters of one run; the ratio printed by `-s` is about 0.01."""
    code = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
    light = min(float(run(code.format("mm"))) for _ in range(3))
    heavy = min(float(run(code.format("torch"))) for _ in range(2))
    print(f"import mm / import torch = {light / heavy:.3f}")
    assert light < 0.3 * heavy
