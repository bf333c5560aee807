"""Exact equivalences 1-7 of 14: what LaVi must equal, and what must not change it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mm.encoders.lavi import VisualContext, attach

FAMILIES = ("llama", "qwen2", "opt", "gemma")
CONDITIONERS = ("attention", "mlp", "conv")
ALL = (*CONDITIONERS, "film")


# --- 1 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_01_at_the_start_the_model_is_the_plain_language_model(toolbox, family, dtype, attn):
    plain = toolbox.language_model(family, dtype, attn_implementation=attn)
    ids = toolbox.ids()
    expected = plain(ids).logits
    lavi = attach(plain, toolbox.config())
    assert torch.equal(lavi(ids, visual=toolbox.encode(lavi)).logits, expected)


@pytest.mark.parametrize("conditioner", ALL)
def test_01_at_the_start_whatever_the_conditioner(toolbox, conditioner):
    lavi = toolbox.lavi(start=True, conditioner=conditioner)
    ids = toolbox.ids()
    assert torch.equal(lavi(ids, visual=toolbox.encode(lavi)).logits, lavi(ids).logits)
    assert not torch.equal(toolbox.randomise(lavi)(ids, visual=toolbox.encode(lavi)).logits, lavi(ids).logits)


# --- 2 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conditioner", ALL)
@pytest.mark.parametrize("way", ["no image", "masked", "zero tokens", "scale 0"])
def test_02_without_vision_a_trained_model_is_the_plain_one(toolbox, conditioner, way):
    lavi = toolbox.lavi(conditioner=conditioner)
    ids = toolbox.ids()
    expected = toolbox.language_model()(ids).logits
    if way == "no image":
        visual = None
    elif way == "masked":
        visual = toolbox.encode(lavi, mask=torch.zeros(2, 16, dtype=torch.bool))
    elif way == "zero tokens":
        visual = lavi.context_from_tokens(torch.zeros(2, 16, 16), grid=toolbox.grid)
    else:
        lavi.delta_scale, visual = 0.0, toolbox.encode(lavi)
    assert torch.equal(lavi(ids, visual=visual).logits, expected)
    lavi.delta_scale = 1.0
    assert not torch.equal(lavi(ids, visual=toolbox.encode(lavi)).logits, expected)


@pytest.mark.parametrize("conditioner", ALL)
def test_02_text_only_rows_of_a_mixed_batch_are_plain(toolbox, conditioner):
    lavi = toolbox.lavi(conditioner=conditioner)
    ids = toolbox.ids(batch=3)
    mask = torch.tensor([[True], [False], [True]]).expand(3, 16)
    visual = toolbox.encode(lavi, batch=3, mask=mask)
    mixed, plain = lavi(ids, visual=visual).logits, lavi(ids).logits
    assert torch.equal(mixed[1], plain[1])
    full = lavi(ids, visual=toolbox.encode(lavi, batch=3)).logits
    torch.testing.assert_close(mixed[[0, 2]], full[[0, 2]])
    assert not torch.allclose(mixed[0], plain[0])


# --- 3 ----------------------------------------------------------------------------------------------------------


def constant_delta(lavi, layer, site, scale=None, shift=None):
    """Make one site give the same deltas to every token; the other sites keep the zeros of the start."""
    lavi.cond.block(layer).site(site).forward = lambda tokens, memory, mask: (
        None if scale is None else scale.expand_as(tokens),
        None if shift is None else shift.expand_as(tokens),
    )


def add_bias(linear, value):
    """A linear layer that adds `value` on top."""
    longer = nn.Linear(linear.in_features, linear.out_features)
    longer.weight = linear.weight
    longer.bias = nn.Parameter(value if linear.bias is None else linear.bias + value)
    return longer


@pytest.mark.parametrize("site", ["attn", "ffn"])
@pytest.mark.parametrize("family", FAMILIES)
def test_03_a_constant_scale_delta_is_a_changed_norm_weight(toolbox, family, site):
    lavi, ids = toolbox.lavi(family, start=True), toolbox.ids()
    delta = 0.5 * torch.randn(32, generator=torch.Generator().manual_seed(3))
    constant_delta(lavi, 2, site, scale=delta)
    seen = lavi(ids, visual=toolbox.encode(lavi)).logits

    norm = lavi.backbone.norms(2)[site == "ffn"]
    norm.weight += delta
    torch.testing.assert_close(seen, lavi(ids).logits, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_03_a_constant_shift_delta_before_attention_is_a_bias_of_query_key_and_value(toolbox, family):
    lavi, ids = toolbox.lavi(family, start=True), toolbox.ids()
    delta = 0.5 * torch.randn(32, generator=torch.Generator().manual_seed(4))
    constant_delta(lavi, 2, "attn", shift=delta)
    seen = lavi(ids, visual=toolbox.encode(lavi)).logits

    attention = lavi.backbone.layers[2].self_attn
    for name in ("q_proj", "k_proj", "v_proj"):
        linear = getattr(attention, name)
        setattr(attention, name, add_bias(linear, linear.weight @ delta))
    torch.testing.assert_close(seen, lavi(ids).logits, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_03_a_constant_shift_delta_before_the_feed_forward_is_a_bias_of_its_first_layers(toolbox, family):
    lavi, ids = toolbox.lavi(family, start=True), toolbox.ids()
    delta = 0.5 * torch.randn(32, generator=torch.Generator().manual_seed(5))
    constant_delta(lavi, 2, "ffn", shift=delta)
    seen = lavi(ids, visual=toolbox.encode(lavi)).logits

    block = lavi.backbone.layers[2]
    holder, names = (block, ("fc1",)) if family == "opt" else (block.mlp, ("gate_proj", "up_proj"))
    for name in names:
        linear = getattr(holder, name)
        setattr(holder, name, add_bias(linear, linear.weight @ delta))
    torch.testing.assert_close(seen, lavi(ids).logits, rtol=1e-5, atol=2e-5)


# --- 4 ----------------------------------------------------------------------------------------------------------


def handwritten(family, hidden, weight, bias, eps, scale, shift):
    """ViLN as the formula says, in float64."""
    hidden, weight = hidden.double(), weight.double() + (1.0 if family == "gemma" else 0.0)
    if family == "opt":
        hidden = hidden - hidden.mean(-1, keepdim=True)
    standard = hidden / (hidden.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    return (weight + scale) * standard + (0.0 if bias is None else bias.double()) + shift


@pytest.mark.parametrize("modulate", ["both", "scale", "shift"])
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("size", [3.0, 1e-3])  # small states show a wrong epsilon
@pytest.mark.parametrize("family", FAMILIES)
def test_04_viln_equals_the_formula(toolbox, family, size, relative, modulate):
    lavi = toolbox.lavi(family, relative=relative, modulate=modulate)
    visual = toolbox.encode(lavi)
    norm = lavi.backbone.norms(0)[0]
    hidden = size * (torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(6)) + 0.3)
    plain = norm(hidden)
    scale, shift = lavi.cond.block(0).site("attn")(plain, visual.memory[0])
    assert (scale is None) == (modulate == "shift") and (shift is None) == (modulate == "scale")
    scale = torch.zeros_like(plain) if scale is None else scale
    shift = torch.zeros_like(plain) if shift is None else shift
    if relative:
        scale = scale * (norm.weight + (1.0 if family == "gemma" else 0.0))
    eps = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
    expected = handwritten(
        family, hidden, norm.weight, getattr(norm, "bias", None), eps, scale.double(), shift.double()
    )
    with lavi.seeing(visual):
        torch.testing.assert_close(norm(hidden).double(), expected, rtol=2e-5, atol=2e-5)


def test_04_small_deltas_beside_large_weights_survive_bfloat16(toolbox):
    lavi = toolbox.lavi(start=True, dtype=torch.bfloat16)
    norm = lavi.backbone.norms(0)[0]
    norm.weight.fill_(64.0)  # the neighbours of 64 in bfloat16 are 63.75 and 64.5
    constant_delta(lavi, 0, "attn", scale=torch.full((32,), 0.2))
    hidden = torch.randn(1, 64, 32, generator=torch.Generator().manual_seed(7)).bfloat16()
    standard = hidden.double() / (hidden.double().pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    with lavi.seeing(toolbox.encode(lavi, batch=1)):
        seen = norm(hidden).double()
    slope = (seen * standard).sum() / standard.square().sum()
    assert abs(slope - 64.2) < 0.1, f"the delta vanished in the rounding of the weight: {slope}"


# --- 5 ----------------------------------------------------------------------------------------------------------


def test_05_attention_sees_a_set_of_visual_tokens(toolbox):
    lavi, ids = toolbox.lavi(), toolbox.ids()
    patches = toolbox.features()
    tiles = torch.arange(16).div(4, rounding_mode="floor").expand(2, 16)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(8))
    reference = lavi(ids, visual=lavi.encode_vision(patches, tile_ids=tiles)).logits

    shuffled = lavi.encode_vision(patches[:, order], tile_ids=tiles[:, order])
    torch.testing.assert_close(lavi(ids, visual=shuffled).logits, reference, rtol=1e-5, atol=2e-5)

    doubled = lavi.encode_vision(patches.repeat(1, 2, 1), tile_ids=tiles.repeat(1, 2))
    torch.testing.assert_close(lavi(ids, visual=doubled).logits, reference, rtol=1e-5, atol=2e-5)

    patches_only = lavi.encode_vision(patches[:, order], tile_ids=tiles)
    assert not torch.allclose(lavi(ids, visual=patches_only).logits, reference, atol=1e-3)


@pytest.mark.parametrize("garbage", [1e4, float("nan")])
@pytest.mark.parametrize("conditioner", ALL)
def test_05_masked_tokens_have_no_influence(toolbox, conditioner, garbage):
    lavi, ids = toolbox.lavi(conditioner=conditioner), toolbox.ids()
    patches = toolbox.features()
    longer = torch.cat([patches, torch.full_like(patches, garbage)], dim=1)
    mask = torch.arange(32).expand(2, 32) < 16
    visual = lavi.encode_vision(longer, mask, grid=toolbox.grid)
    reference = lavi(ids, visual=lavi.encode_vision(patches, grid=toolbox.grid)).logits
    torch.testing.assert_close(lavi(ids, visual=visual).logits, reference, rtol=1e-5, atol=2e-5)


def test_05_convolution_sees_a_plane(toolbox):
    lavi, ids = toolbox.lavi(conditioner="conv"), toolbox.ids()
    patches = toolbox.features()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(9))
    reference = lavi(ids, visual=lavi.encode_vision(patches, grid=toolbox.grid)).logits
    shuffled = lavi(ids, visual=lavi.encode_vision(patches[:, order], grid=toolbox.grid)).logits
    assert not torch.allclose(shuffled, reference, atol=1e-3)


# --- 6 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conditioner", ALL)
@pytest.mark.parametrize("chunks", [[1] * 7, [3, 4], [5, 1, 1]])
def test_06_cached_decoding_equals_one_pass(toolbox, conditioner, chunks):
    lavi, ids = toolbox.lavi(conditioner=conditioner), toolbox.ids()
    visual = toolbox.encode(lavi)
    expected = lavi(ids, visual=visual).logits
    cache, parts = lavi.backbone.new_cache(), []
    for part in ids.split(chunks, dim=1):
        parts.append(lavi(part, visual=visual, past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_06_left_padded_batch_equals_single_rows(toolbox, family):
    lavi = toolbox.lavi(family)
    visual = toolbox.encode(lavi)
    short, long = toolbox.ids(1, 4, seed=1), toolbox.ids(1, 7, seed=2)
    ids = torch.cat([torch.cat([torch.zeros(1, 3, dtype=torch.long), short], 1), long])
    mask = ids != 0
    positions = (mask.long().cumsum(1) - 1).clamp_min(0)
    both = lavi(ids, attention_mask=mask.long(), position_ids=positions, visual=visual).logits
    alone = lavi(short, visual=visual.index([0])).logits
    torch.testing.assert_close(both[:1, 3:], alone, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(both[1:], lavi(long, visual=visual.index([1])).logits, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("conditioner", ALL)
def test_06_beams_share_the_context_of_their_sample(toolbox, conditioner):
    lavi = toolbox.lavi(conditioner=conditioner)
    visual, ids = toolbox.encode(lavi), toolbox.ids()
    repeated = ids.repeat_interleave(3, dim=0)
    repeated[:, -1] = torch.arange(3, 9)  # beams differ
    expanded = lavi(repeated, visual=visual.expand(3)).logits
    with lavi.seeing(visual):
        folded = lavi.language_model(repeated).logits
    torch.testing.assert_close(folded, expanded, rtol=1e-5, atol=2e-5)


# --- 7 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conditioner", ALL)
def test_07_later_tokens_do_not_reach_earlier_logits(toolbox, conditioner):
    lavi, ids = toolbox.lavi(conditioner=conditioner), toolbox.ids()
    visual: VisualContext = toolbox.encode(lavi)
    changed = ids.clone()
    changed[:, 4] = (changed[:, 4] - 2) % 61 + 3
    assert (changed[:, 4] != ids[:, 4]).all()
    before, after = lavi(ids, visual=visual).logits, lavi(changed, visual=visual).logits
    torch.testing.assert_close(after[:, :4], before[:, :4], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(after[:, 4], before[:, 4], atol=1e-3)
