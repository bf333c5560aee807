"""The methods by the names that the command line uses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mm.checkpoint import config_from_dict
from mm.pruning.base import Pruner
from mm.pruning.flowcut import FlowCut
from mm.pruning.peers import FastV, PruMerge, PyramidDrop, RandomPrune, SparseVLM, UniformGrid, VisionZip

METHODS: dict[str, type[Pruner]] = {
    "flowcut": FlowCut,
    "visionzip": VisionZip,
    "prumerge": PruMerge,
    "fastv": FastV,
    "sparsevlm": SparseVLM,
    "pyramiddrop": PyramidDrop,
    "uniform": UniformGrid,
    "random": RandomPrune,
}
"""Name -> class; every class takes `target_tokens`."""


def make_pruner(name: str, target: int, options: Mapping[str, Any] | None = None) -> Pruner:
    """A method by name.

    Args:
        name: A key of `METHODS`.
        target: Visual tokens to keep per picture.
        options: Further fields of the class.

    Raises:
        ValueError: unknown name or option.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; there are {', '.join(METHODS)}")
    data = {"target_tokens": target, **(options or {})}
    return config_from_dict(METHODS[name], data, source=f"method {name}")


def read_options(pairs: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE words -> options; values are JSON where they parse as such, else text.

    Raises:
        ValueError: a word without "=".

    Example:
        >>> read_options(["interval=1", "schedule=last", "criteria=[\\"attention\\"]"])
        {'interval': 1, 'schedule': 'last', 'criteria': ['attention']}
    """
    options = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ValueError(f"--option takes NAME=VALUE, got {pair!r}")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options
