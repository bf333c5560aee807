"""Run in an environment that holds the wheel and the core dependencies alone, from a folder outside the checkout."""

from __future__ import annotations

import codecs
import os
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

import numpy as np

import mm

home = Path(mm.__file__).parent
assert Path(sys.prefix) in home.parents, f"mm comes from {home}, not from {sys.prefix}"
assert Path(codecs.__file__).parent == Path(os.__file__).parent, f"codecs is {codecs.__file__}, not Python's own"
for domain in ("encoders", "pruning", "cad", "medical", "configs"):
    assert find_spec(domain) is None, f"the wheel installs a top-level module {domain!r}"

# GPU kernels (*_triton) are loaded by the dispatcher where triton is installed.
names = [found.name for found in walk_packages(mm.__path__, "mm.") if not found.name.endswith(("__main__", "_triton"))]
for name in names:
    import_module(name)
print(f"{len(names)} modules import with the core dependencies alone")

mm.create_model("lavi_tiny")
from mm.checkpoint import shipped_names  # noqa: E402  (after the check that the package itself is the installed one)

grey = np.full((64, 64, 3), 128, dtype=np.uint8)
for name in shipped_names():
    model: Any = mm.load(name)
    if hasattr(model, "ask") and not hasattr(model, "encode_volume"):  # needs tokenizer, chat template, preprocessing
        print(f"{name} answers {model.ask(grey, 'is it red?', max_new_tokens=2)!r}")
print(f"shipped weights load: {', '.join(shipped_names())}")
assert shipped_names(), "no weights ship with the wheel"
