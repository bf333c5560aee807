"""Small models with random weights."""

from __future__ import annotations

import pytest
import torch

from mm.encoders.evilm import EViLM, Swin3DConfig, evilm_tiny

FOUR_STAGES = Swin3DConfig(embed_dim=8, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), drop_path=0.0)


def small(**fields) -> EViLM:
    """Four stages as in the published sizes: cells of 32 pixels with 2 x 2 codes of 64 each."""
    return evilm_tiny(
        **{"video": FOUR_STAGES, "fusion_layers": 1, "codebook_size": 64, "position_grid": 2, "answers": ()} | fields
    )


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def model() -> EViLM:
    """All heads; tables large enough that a wrong place changes the result."""
    model = small()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return model.eval()


@pytest.fixture
def build():
    """Makes a model of four stages with some fields of its own."""
    return small
