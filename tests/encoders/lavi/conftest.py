"""Tiny random models with a visual path whose output projections are not zero, unless a test asks for the start."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mm.backbone.tiny import tiny_model
from mm.encoders.lavi import Lavi, LaviConfig, attach

VISION_WIDTH = 12
GRID = (4, 4)


def randomise_outputs(lavi: Lavi, seed: int = 1, std: float = 0.3) -> Lavi:
    """Leave the start: output projections, biases and embeddings of places get random values instead of zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in lavi.named_parameters():
            if name.startswith("cond.") and "out_proj" in name:
                parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
            if name.startswith("visual_proj.") and name.endswith(("_emb", "bias")):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return lavi


def tiny_config(**changes: object) -> LaviConfig:
    """A config small enough for tests; every second block."""
    sizes = {"vision_width": VISION_WIDTH, "width": 16, "num_heads": 4, "num_kv_heads": 2, "layers": "every:2"}
    sizes |= {"num_slots": 8, "token_hidden": 4, "channel_hidden": 16, "kernel_size": 3, "cells": 2}
    return LaviConfig(**(sizes | changes))  # type: ignore[arg-type]


def features(batch: int = 2, tiles: int = 1, seed: int = 0) -> Tensor:
    """Random patch tokens of 4 x 4 tiles, (B, tiles * 16, 12)."""
    generator = torch.Generator().manual_seed(100 + seed)
    return torch.randn(batch, tiles * GRID[0] * GRID[1], VISION_WIDTH, generator=generator)


def token_ids(batch: int = 2, length: int = 7, seed: int = 0) -> Tensor:
    """Random ids without special tokens."""
    return torch.randint(3, 64, (batch, length), generator=torch.Generator().manual_seed(200 + seed))


class Toolbox:
    """What the tests need, in one fixture."""

    config = staticmethod(tiny_config)
    features = staticmethod(features)
    ids = staticmethod(token_ids)
    randomise = staticmethod(randomise_outputs)
    grid = GRID

    def language_model(self, family: str = "llama", dtype: torch.dtype = torch.float32, **sizes: object) -> nn.Module:
        """A tiny causal LM; equal arguments give equal weights."""
        return tiny_model(family, **sizes).to(dtype)

    def lavi(
        self, family: str = "llama", *, start: bool = False, dtype: torch.dtype = torch.float32, **changes: object
    ) -> Lavi:
        """A tiny LaVi; `start=True` keeps the zero-initialised outputs."""
        model = attach(self.language_model(family, dtype), tiny_config(**changes))
        return model if start else randomise_outputs(model)

    def encode(self, lavi: Lavi, batch: int = 2, seed: int = 0, **kwargs: object):  # type: ignore[no-untyped-def]
        """Context of random pictures."""
        parameter = next(lavi.visual_proj.parameters())
        return lavi.encode_vision(features(batch, seed=seed).to(parameter.dtype), grid=GRID, **kwargs)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def toolbox() -> Toolbox:
    """Builders of models and inputs."""
    return Toolbox()


@pytest.fixture(autouse=True)
def _no_grad_unless_asked(request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    """Most tests only look at numbers; those that need gradients take the fixture `gradients`."""
    with torch.set_grad_enabled("gradients" in request.fixturenames):
        yield


@pytest.fixture
def gradients() -> None:
    """Asks for gradients."""
