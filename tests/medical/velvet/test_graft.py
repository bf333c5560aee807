"""A vision encoder moves to another text side and still finds its reports."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("monai")

from mm.medical.velvet.data import PhantomConfig, phantom_batch
from mm.medical.velvet.graft import graft_vision, ridge
from mm.medical.velvet.presets import velvet_tiny


def test_ridge_finds_a_linear_map():
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(200, 6, generator=generator)
    wanted, shift = torch.randn(6, 6, generator=generator), torch.randn(6, generator=generator)
    weight, bias = ridge(source, source @ wanted + shift, 1e-9)
    torch.testing.assert_close(weight, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bias, shift, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_vision_vectors_follow_into_a_turned_text_space():
    donor = velvet_tiny(vision_heads=False)
    model = copy.deepcopy(donor)
    for parameter in model.vision.parameters():
        parameter.add_(0.1)
    turn = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0))).Q
    for level in model.config.levels:  # the same text vectors in a turned space
        head = model.level_head(level).text
        head.weight.copy_(turn.T @ head.weight)
        head.bias.copy_(head.bias @ turn)
    tokens = phantom_batch(range(0, 200, 2), PhantomConfig(size=16, crop=0))
    graft_vision(model, donor, tokens, damping=1e-9)
    volume = torch.rand(2, 1, 32, 32, 32, generator=torch.Generator().manual_seed(1))
    products = []
    for side in (model, donor):
        fields = {name: tokens[name] for name in ("input_ids", "token_type_ids", "attention_mask", "unit_starts")}
        text = side.encode_text(**fields).embeddings
        found = side.volume_embeddings(side.encode_volume(volume)).word[0] @ text.word[text.word_keep].T
        products.append(found - found.mean(1, keepdim=True))  # the map is known only where texts differ
    torch.testing.assert_close(products[0], products[1], rtol=1e-2, atol=1e-3)
    assert products[0].std() > 10 * (products[0] - products[1]).std()
