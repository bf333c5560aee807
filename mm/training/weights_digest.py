"""A short name for weights and settings together, so that features of another model are told apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

DIGITS = 16


def weights_digest(settings: Any, tensors: Mapping[str, Tensor]) -> str:
    """Sixteen hexadecimal digits over plain settings and every value of every tensor; the device does not count.

    Example:
        >>> ones = {"w": torch.ones(2)}
        >>> weights_digest({"width": 2}, ones) == weights_digest({"width": 3}, ones)
        False
    """
    found = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name].detach().contiguous().cpu()
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:DIGITS]
