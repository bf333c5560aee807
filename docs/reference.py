"""Pages of the reference, made while mkdocs builds: one per package, one entry per public name.

Names come from each package's `__all__`, the text from the docstrings, which are read from the source without running
it. The five domain folders lie at the top of the repository and are imported as `mm.<name>`; for the reader of the
sources a folder of links puts them where the import has them.
"""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
DOMAINS = ("encoders", "codecs", "pruning", "cad", "medical")
PACKAGES = (
    "mm",
    "mm.backbone",
    "mm.kernels",
    "mm.vision",
    "mm.vlm",
    "mm.data",
    "mm.training",
    "mm.metrics",
    "mm.encoders.lavi",
    "mm.encoders.flame",
    "mm.encoders.evilm",
    "mm.pruning",
    "mm.pruning.visionthink",
    "mm.codecs",
    "mm.cad",
    "mm.medical",
)


@event_priority(100)  # mkdocstrings looks for the folder in its own turn
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Link the sources together and list the pages in the navigation."""
    place = ROOT / "build" / "reference" / "mm"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for entry in [*(ROOT / "mm").iterdir(), *(ROOT / domain for domain in DOMAINS)]:
        if entry.suffix == ".py" or (entry / "__init__.py").is_file():
            (place / entry.name).symlink_to(entry)
    section = next(entry for entry in config.nav or [] if "Reference" in entry)
    section["Reference"] = [{package: f"reference/{package}.md"} for package in PACKAGES]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page per package."""
    for package in PACKAGES:
        page = File.generated(config, f"reference/{package}.md", content=text(package))
        files.append(page)
    return files


def text(package: str) -> str:
    """Heading, what the package says of itself, and its public names."""
    module = import_module(package)
    about = "\n\n".join((module.__doc__ or "").split("\n\n")[:1]).strip()
    entries = [f"::: {path}" for name in module.__all__ if (path := home(module, name))]
    return "\n\n".join([f"# `{package}`", about, *entries]) + "\n"


def home(module: ModuleType, name: str) -> str:
    """Where a public name is defined; "" for plain values, which have no docstring of their own."""
    found: Any = getattr(module, name)
    if isinstance(found, ModuleType) or not hasattr(found, "__qualname__"):
        return ""
    return f"{found.__module__}.{found.__qualname__}"
