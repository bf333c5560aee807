"""Which weights a result was made with."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def fingerprint(model: nn.Module) -> str:
    """Hash over names and values of all saved tensors, 16 digits; device and dtype float32 or narrower do not matter.

    Example:
        >>> one, other = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> fingerprint(one) == fingerprint(one), fingerprint(one) == fingerprint(other)
        (True, False)
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        plain = value.detach().cpu().contiguous()
        plain = plain.float() if plain.is_floating_point() else plain.to(torch.int64)
        digest.update(f"{name} {tuple(plain.shape)}".encode())
        digest.update(plain.numpy().tobytes())
    return digest.hexdigest()[:16]
