"""The decoder of the parity fixtures with its reference weights, and a small random one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mm.checkpoint import load_state
from mm.codecs.semanticodec.config import (
    DecoderConfig,
    DiffusionConfig,
    UNetConfig,
    VaeConfig,
    VocoderConfig,
)
from mm.codecs.semanticodec.convert_decoder import OWN_TABLE, key_map
from mm.codecs.semanticodec.decoder import SemantiCodecDecoder

DATA = Path(__file__).parents[3] / "parity" / "data"
REFERENCE = DecoderConfig(
    vae=VaeConfig(width=32, multipliers=(1, 2, 1), res_blocks=1),
    unet=UNetConfig(
        context_width=208, width=32, multipliers=(1, 2, 1), res_blocks=1, attention_factors=(4,), head_width=16
    ),
    diffusion=DiffusionConfig(schedule="linear"),
    vocoder=VocoderConfig(width=32),
    feature_width=16,
)
"""Sizes of the fixtures."""
SMALL = DecoderConfig(
    vae=VaeConfig(width=8, res_blocks=1, norm_groups=4, mel_bins=16),
    unet=UNetConfig(
        context_width=20,
        width=16,
        multipliers=(1, 2),
        res_blocks=1,
        attention_factors=(2,),
        head_width=8,
        norm_groups=4,
    ),
    vocoder=VocoderConfig(width=32, mel_bins=16),
    feature_width=12,
    position_width=8,
    window_tokens=8,
    window_frames=32,
    overlap_frames=8,
)
"""Windows of 8 tokens and 0.32 s, a quarter shared."""


@pytest.fixture(scope="session")
def parity():
    """name -> tensors of `semanticodec_<name>.safetensors`."""
    return lambda name: load_file(DATA / f"semanticodec_{name}.safetensors")


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of the fixtures."""
    return DATA


@pytest.fixture(scope="session")
def reference(parity) -> SemantiCodecDecoder:
    """A decoder with the weights of the fixtures; they give the table of the schedule only as the released formula."""
    decoder = SemantiCodecDecoder(REFERENCE).eval()
    files = [parity(name) for name in ("diffusion", "vae", "hifigan")]
    stored = {key[8:]: value.float() for file in files for key, value in file.items() if key.startswith("weights.")}
    state = {ours: stored[published] for ours, published in key_map(decoder).items()}
    load_state(decoder, state | {OWN_TABLE: decoder.schedule.table_bits}, source="parity fixtures")
    return decoder


@pytest.fixture
def small() -> SemantiCodecDecoder:
    """A small random decoder without zero-initialised layers."""
    return randomised(SemantiCodecDecoder(SMALL).eval())


@pytest.fixture(scope="session")
def randomise():
    """Give every tensor that starts at zero random values."""
    return randomised


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                gain = 1.2 if parameter.dim() == 3 else 1.0  # the vocoder's many leaky layers would damp the signal
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * gain * parameter[0].numel() ** -0.5)
    return module


@pytest.fixture(scope="session")
def close():
    """Assert equality relative to the largest absolute value of the expected tensor."""

    def check(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
        assert found.shape == expected.shape
        error = float((found - expected).abs().max() / expected.abs().max())
        assert error <= tolerance, f"relative error {error:.2e} above {tolerance:.0e}"

    return check
