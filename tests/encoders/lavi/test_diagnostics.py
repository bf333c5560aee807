"""Diagnostics report what the norms really did."""

from __future__ import annotations

import pytest
import torch

from mm.encoders.lavi import inspect, token_strength, word_patch_map


def test_reported_norms_are_those_of_the_deltas(toolbox):
    lavi, ids = toolbox.lavi(layers=(0,), sites=("attn",)), toolbox.ids()
    visual = toolbox.encode(lavi)
    lavi.delta_scale = 0.5
    (record,) = inspect(lavi, ids, visual)
    hidden = lavi.backbone.embed(ids)
    norm = lavi.backbone.norms(0)[0]
    plain = norm(hidden)
    scale, shift = lavi.cond.block(0).site("attn")(plain, visual.memory[0])
    standard = hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + norm.variance_epsilon)
    torch.testing.assert_close(record.scale_norm, 0.5 * (scale * standard).norm(dim=-1))
    torch.testing.assert_close(record.shift_norm, 0.5 * shift.norm(dim=-1))
    torch.testing.assert_close(record.plain_norm, plain.norm(dim=-1))
    outlier = 0.5 * (scale * standard).abs().amax(-1) / plain.abs().amax(-1)
    torch.testing.assert_close(record.outlier, outlier)
    assert (record.layer, record.site) == (0, "attn")


def test_looking_changes_nothing(toolbox):
    lavi, ids = toolbox.lavi(), toolbox.ids()
    visual = toolbox.encode(lavi)
    before = lavi(ids, visual=visual).logits
    records = inspect(lavi, ids, visual)
    assert [(r.layer, r.site) for r in records] == [(0, "attn"), (0, "ffn"), (2, "attn"), (2, "ffn")]
    assert torch.equal(lavi(ids, visual=visual).logits, before)
    assert token_strength(records).shape == (2, 7) and (token_strength(records) > 0).all()


def test_attention_maps_are_the_weights_that_were_used(toolbox):
    lavi, ids = toolbox.lavi(), toolbox.ids()
    mask = torch.arange(16).expand(2, 16) < torch.tensor([[16], [5]])
    image_ids = torch.arange(16).div(8, rounding_mode="floor").expand(2, 16)
    visual = toolbox.encode(lavi, mask=mask, image_ids=image_ids).placed(torch.tensor([[0, 4], [2, 9]]))
    records = inspect(lavi, ids, visual)
    maps = word_patch_map(records)
    assert maps.shape == (2, 7, 16)
    assert maps[0, :4, 8:].eq(0).all() and maps[1, :, 5:].eq(0).all() and maps[1, :2].eq(0).all()
    torch.testing.assert_close(maps[0].sum(-1), torch.ones(7))
    assert records[0].scale_norm[1, :2].eq(0).all(), "tokens in front of every image are not modulated"

    # The weights, applied to the values, give what the fused attention gave.
    site = lavi.cond.block(0).site("attn")
    tokens = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(1))
    readable = torch.rand(2, 7, 16, generator=torch.Generator().manual_seed(2)) < 0.5
    readable[..., 0] = True
    weights = site.weights(tokens, visual.memory[0], readable)
    values = visual.memory[0][1].reshape(2, 16, 2, 4).repeat_interleave(2, dim=2)
    expected = torch.einsum("bnhs,bshe->bnhe", weights, values).reshape(2, 7, 16)
    torch.testing.assert_close(site.read(tokens, visual.memory[0], readable), expected)


def test_conditioners_without_maps_say_so(toolbox):
    lavi, ids = toolbox.lavi(conditioner="conv"), toolbox.ids()
    with pytest.raises(ValueError, match="only the attention conditioner"):
        word_patch_map(inspect(lavi, ids, toolbox.encode(lavi)))
    film = toolbox.lavi(conditioner="film", modulate="shift")
    records = inspect(film, ids, toolbox.encode(film), maps=False)
    assert all(r.scale_norm.eq(0).all() and (r.shift_norm > 0).all() for r in records)
