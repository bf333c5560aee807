"""Which weights a result was made with."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def fingerprint(model: nn.Module) -> str:
    """Hash over names and values of all saved tensors, 16 digits; a model and its bfloat16 copy have the same.

    Example:
        >>> one, other = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> fingerprint(one) == fingerprint(one), fingerprint(one) == fingerprint(other)
        (True, False)
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        plain = value.detach().cpu().contiguous()
        plain = plain.bfloat16().view(torch.int16) if plain.is_floating_point() else plain.to(torch.int64)
        digest.update(f"{name} {tuple(plain.shape)}".encode())
        digest.update(plain.numpy().tobytes())
    return digest.hexdigest()[:16]
