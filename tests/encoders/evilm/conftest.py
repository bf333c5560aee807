"""Small models with random weights."""

from __future__ import annotations

import pytest
import torch

from mm.encoders.evilm import EViLM, evilm_tiny


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def model() -> EViLM:
    """All heads; tables large enough that a wrong place changes the result."""
    model = evilm_tiny(embed_dim=8)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return model.eval()
