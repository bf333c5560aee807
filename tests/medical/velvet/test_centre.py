"""Centred heads: cosines of different patients spread, and nothing but biases moves."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("monai")

from mm.medical.velvet.centre import centre_levels
from mm.medical.velvet.data import PhantomConfig, phantom_batch
from mm.medical.velvet.presets import velvet_tiny


def spread(model, batch):
    """Standard deviation of the cosines of all volumes with all reports."""
    tokens = {name: value for name, value in batch.items() if name != "volume"}
    volume = model.volume_embeddings(model.encode_volume(batch["volume"])).report
    text = model.encode_text(**tokens).embeddings.report
    return (F.normalize(volume, dim=-1) @ F.normalize(text, dim=-1).mT).std()


@torch.no_grad()
def test_centring_spreads_the_cosines_of_other_patients_and_moves_biases_only():
    config = PhantomConfig(crop=0)
    model = velvet_tiny(vision_heads=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    others = phantom_batch(range(0, 24, 2), config)
    narrow = spread(model, others)
    batch = phantom_batch(range(24, 48, 2), config)
    centre_levels(model, batch)
    assert spread(model, others) > 5 * narrow
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {f"levels.{level}.{side}.bias" for level in model.config.levels for side in ("vision", "text")}
    text = model.encode_text(**{name: value for name, value in batch.items() if name != "volume"}).embeddings
    assert text.word[text.word_keep].mean(0).abs().max() < 1e-4
