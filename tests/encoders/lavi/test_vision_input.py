"""What goes into `encode_vision`: projection, pooling, several ViT layers, places, and wrong input."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mm.encoders.lavi.conditioners.mlp import MlpSite, ordered_slots
from mm.encoders.lavi.projector import pool_tiles


def test_visual_tokens_follow_the_formula(toolbox):
    lavi = toolbox.lavi()
    projector, patches = lavi.visual_proj, toolbox.features()
    tile, frame, image = (torch.randint(0, 8, (2, 16), generator=torch.Generator().manual_seed(s)) for s in range(3))
    normed = F.layer_norm(patches, (12,), projector.norm.weight, projector.norm.bias)
    hidden = F.gelu(normed @ projector.fc1.weight.T + projector.fc1.bias)
    expected = hidden @ projector.fc2.weight.T + projector.fc2.bias
    expected = expected + projector.tile_emb[tile] + projector.frame_emb[frame] + projector.image_emb[image]
    torch.testing.assert_close(projector(patches, tile_ids=tile, frame_ids=frame, image_ids=image), expected)


@pytest.mark.parametrize("place", ["tile_ids", "frame_ids", "image_ids"])
def test_places_make_the_order_visible(toolbox, place):
    lavi, ids = toolbox.lavi(), toolbox.ids()
    patches, places = toolbox.features(tiles=2), torch.arange(32).div(16, rounding_mode="floor").expand(2, 32)
    swapped = torch.cat([patches[:, 16:], patches[:, :16]], 1)
    one = lavi(ids, visual=lavi.encode_vision(patches, **{place: places})).logits
    two = lavi(ids, visual=lavi.encode_vision(swapped, **{place: places})).logits
    assert not torch.allclose(one, two, atol=1e-3)
    blind = [lavi(ids, visual=lavi.encode_vision(x)).logits for x in (patches, swapped)]
    torch.testing.assert_close(blind[0], blind[1], rtol=1e-5, atol=2e-5)


def test_places_start_at_zero(toolbox):
    projector = toolbox.lavi(start=True).visual_proj
    assert not any(table.any() for table in (projector.tile_emb, projector.frame_emb, projector.image_emb))


# --- pooling ----------------------------------------------------------------------------------------------------


def test_pooling_averages_real_patches_tile_by_tile():
    features = torch.randn(2, 2 * 16, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(2, 32, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[1, 16:] = False
    pooled, real = pool_tiles(features, mask, (4, 4), 2)
    for b in range(2):
        for t in range(2):
            for r in range(2):
                for c in range(2):
                    cells = [t * 16 + (2 * r + i) * 4 + 2 * c + j for i in range(2) for j in range(2)]
                    kept = [k for k in cells if mask[b, k]]
                    slot = t * 4 + r * 2 + c
                    assert real[b, slot] == bool(kept)
                    if kept:
                        torch.testing.assert_close(pooled[b, slot], features[b, kept].mean(0))
    assert pool_tiles(features, None, (4, 4), 2)[1] is None
    torch.testing.assert_close(
        pool_tiles(features, None, (4, 4), 2)[0], pool_tiles(features, torch.ones_like(mask), (4, 4), 2)[0]
    )


def test_pooled_context_keeps_the_places_of_its_tiles(toolbox):
    lavi = toolbox.lavi(pool=2)
    frames = torch.arange(32).div(16, rounding_mode="floor").expand(2, 32)
    mask = frames == 0
    visual = lavi.encode_vision(toolbox.features(tiles=2), mask, frame_ids=frames, grid=toolbox.grid)
    assert visual.num_slots == 8
    assert visual.frame_ids[0].tolist() == [0] * 4 + [1] * 4
    assert visual.mask[0].tolist() == [True] * 4 + [False] * 4


def test_slots_of_the_mlp_conditioner_keep_order_and_ignore_padding():
    tokens = torch.arange(12.0).reshape(1, 12, 1)
    assert ordered_slots(tokens, None, 4).flatten().tolist() == [1.0, 4.0, 7.0, 10.0]
    assert torch.equal(ordered_slots(tokens, None, 12), tokens)
    mask = torch.ones(1, 12, dtype=torch.bool)
    mask[0, [0, 5, 6, 11]] = False
    assert ordered_slots(tokens, mask, 4).flatten().tolist() == [1.5, 3.5, 7.5, 9.5]
    assert ordered_slots(tokens, torch.zeros_like(mask), 4).eq(0).all()


def test_mlp_conditioner_in_parts_equals_in_one(toolbox, monkeypatch, gradients):
    lavi = toolbox.lavi(conditioner="mlp")
    ids = toolbox.ids()
    whole = lavi(ids, visual=toolbox.encode(lavi)).logits
    whole.square().mean().backward()
    expected = {name: p.grad.clone() for name, p in lavi.cond.named_parameters()}
    lavi.zero_grad()
    sizes = []
    mix = MlpSite._mix
    monkeypatch.setattr("mm.encoders.lavi.conditioners.mlp.CHUNK_ELEMENTS", 300)
    monkeypatch.setattr(
        MlpSite, "_mix", lambda self, mixed, query: sizes.append(query.shape[1]) or mix(self, mixed, query)
    )
    parts = lavi(ids, visual=toolbox.encode(lavi)).logits
    assert set(sizes) == {2, 1}
    torch.testing.assert_close(parts, whole)
    parts.square().mean().backward()
    for name, p in lavi.cond.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_padding_inside_a_tile_counts_as_empty_for_the_convolution(toolbox):
    block = toolbox.lavi(conditioner="conv").cond.block(0)
    tokens = torch.randn(2, 32, 16, generator=torch.Generator().manual_seed(1))
    mask = torch.rand(2, 32, generator=torch.Generator().manual_seed(2)) < 0.5
    (cells,) = block.prepare(tokens, mask, (4, 4))
    (expected,) = block.prepare(tokens * mask[..., None], None, (4, 4))
    torch.testing.assert_close(cells, expected)
    assert not torch.allclose(cells, block.prepare(tokens, None, (4, 4))[0], atol=1e-3)


# --- attention conditioner ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("activation", ["none", "silu"])
def test_attention_conditioner_equals_a_loop_over_heads(toolbox, qk_norm, activation):
    lavi = toolbox.lavi(qk_norm=qk_norm, activation=activation)
    block = lavi.cond.block(0)
    site, kv = block.site("attn"), block.kv
    tokens = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    visual = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(2))
    mask = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(3)) < 0.6
    mask[..., 0] = True

    def normed(x, norm):  # per head, 4 channels
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * norm.weight if qk_norm else x

    found = []
    for head in range(4):
        shared = head // 2  # two query heads read one key/value head
        query = normed(tokens @ site.q_proj.weight[4 * head : 4 * head + 4].T, site.q_norm)
        key = normed(visual @ kv.k_proj.weight[4 * shared : 4 * shared + 4].T, kv.k_norm)
        value = visual @ kv.v_proj.weight[4 * shared : 4 * shared + 4].T
        scores = (query @ key.mT / 4**0.5).masked_fill(~mask, -torch.inf)
        found.append(scores.softmax(-1) @ value)
    joined = torch.cat(found, -1)
    deltas = (F.silu(joined) if activation == "silu" else joined) @ site.out_proj.weight.T
    scale, shift = site(tokens, block.prepare(visual, None, None), mask)
    torch.testing.assert_close(scale, deltas[..., :32])
    torch.testing.assert_close(shift, deltas[..., 32:])


# --- several ViT layers -----------------------------------------------------------------------------------------


def test_dense_features_are_concatenated(toolbox):
    lavi = toolbox.lavi(vision_feature_layers=(-2, -5))
    levels = [toolbox.features(seed=s) for s in (0, 1)]
    assert lavi.visual_proj.vision_width == 24
    visual = lavi.encode_vision(levels)
    expected = lavi.context_from_tokens(lavi.visual_proj(torch.cat(levels, -1)))
    assert visual.fingerprint == expected.fingerprint


def test_aligned_features_reach_their_own_block_only(toolbox):
    lavi = toolbox.lavi(vision_feature_layers=(-2, -5), feature_mode="aligned")
    one, two, three = (toolbox.features(seed=s) for s in range(3))
    base, changed = lavi.encode_vision([one, two]), lavi.encode_vision([one, three])
    assert torch.equal(base.memory[0][0], changed.memory[0][0])
    assert not torch.equal(base.memory[2][0], changed.memory[2][0])
    ids = toolbox.ids()
    assert not torch.allclose(lavi(ids, visual=base).logits, lavi(ids, visual=changed).logits, atol=1e-3)


# --- wrong input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"features": torch.zeros(2, 16, 13)}, r"must be \(B, M, 12\).*got shape \(2, 16, 13\)"),
        ({"features": torch.zeros(16, 12)}, r"must be \(B, M, 12\)"),
        ({"features": torch.zeros(2, 0, 12)}, "no visual token"),
        ({"features": [torch.zeros(2, 16, 12)] * 2}, "lists 1 ViT layers, got features of 2"),
        ({"mask": torch.ones(2, 15, dtype=torch.bool)}, r"mask must be \(2, 16\).*got \(2, 15\)"),
        ({"mask": torch.ones(2, 16)}, "mask must be boolean"),
        ({"tile_ids": torch.zeros(1, 16, dtype=torch.long)}, "tile_ids must be"),
        ({"tile_ids": torch.full((2, 16), 16)}, r"tile_ids must lie in 0..15, found 16..16; raise num_tiles"),
        ({"frame_ids": torch.full((2, 16), -1)}, "frame_ids must lie in 0..63"),
        ({"grid": (3, 4)}, "not whole tiles of 3 x 4"),
    ],
)
def test_wrong_features_are_named(toolbox, kwargs, message):
    lavi = toolbox.lavi()
    with pytest.raises(ValueError, match=message):
        lavi.encode_vision(**{"features": toolbox.features(), **kwargs})


@pytest.mark.parametrize("changes", [{"conditioner": "conv"}, {"pool": 2}])
def test_missing_planes_are_named(toolbox, changes):
    with pytest.raises(ValueError, match="pass grid="):
        toolbox.lavi(**changes).encode_vision(toolbox.features())


def test_contexts_must_fit_the_batch_and_the_model(toolbox):
    lavi, ids = toolbox.lavi(), toolbox.ids(batch=3)
    with pytest.raises(ValueError, match="2 rows, the text batch 3"):
        lavi(ids, visual=toolbox.encode(lavi))
    with pytest.raises(ValueError, match="2 rows, the text batch 4"):  # a multiple must not pass for beams
        lavi(toolbox.ids(batch=4), visual=toolbox.encode(lavi))
    with lavi.seeing(toolbox.encode(lavi)), pytest.raises(ValueError, match="2 rows, the text batch 3"):
        lavi.language_model(ids)
    other = toolbox.lavi(layers="every:1")
    with pytest.raises(ValueError, match="encode the pictures again"):
        lavi(toolbox.ids(), visual=toolbox.encode(other))
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        lavi()
    embeds = lavi.backbone.embed(toolbox.ids())
    visual = toolbox.encode(lavi)
    assert torch.equal(lavi(inputs_embeds=embeds, visual=visual).logits, lavi(toolbox.ids(), visual=visual).logits)


@pytest.mark.parametrize("conditioner", ["attention", "mlp", "conv", "film"])
def test_rows_without_vision_have_finite_gradients(toolbox, conditioner, gradients):
    lavi = toolbox.lavi(conditioner=conditioner)
    mask = torch.tensor([[True], [False]]).expand(2, 16)
    patches = toolbox.features()
    patches[1] = float("nan")
    logits = lavi(toolbox.ids(), visual=lavi.encode_vision(patches, mask, grid=toolbox.grid)).logits
    logits.square().mean().backward()
    for name, parameter in lavi.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
