"""Exact equivalences 8-14 of 14: tokens, gradients, surgery, cost, files and several images."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mm.encoders.lavi import ViLN, attach, detach, load_adapter, save_adapter
from mm.encoders.lavi.flops import conditioner_flops, visual_cache_bytes

FAMILIES = ("llama", "qwen2", "opt", "gemma")
CONDITIONERS = ("attention", "mlp", "conv")
ALL = (*CONDITIONERS, "film")


# --- 8 ----------------------------------------------------------------------------------------------------------


def first_deltas(lavi, ids, visual):
    """Deltas of the very first modulated norm, whose state is the word embedding."""
    caught = []
    handle = lavi.cond.block(0).site("attn").register_forward_hook(lambda module, args, out: caught.append(out))
    lavi(ids, visual=visual)
    handle.remove()
    scale, shift = caught[0]
    return torch.cat([scale, shift], dim=-1)


@pytest.mark.parametrize("conditioner", CONDITIONERS)
def test_08_deltas_belong_to_the_token(toolbox, conditioner):
    lavi = toolbox.lavi(conditioner=conditioner)
    ids = torch.tensor([[5, 9, 5, 11]])
    delta = first_deltas(lavi, ids, toolbox.encode(lavi, batch=1))
    torch.testing.assert_close(delta[:, 0], delta[:, 2])
    assert not torch.allclose(delta[:, 0], delta[:, 1], atol=1e-3)
    other = first_deltas(lavi, ids, toolbox.encode(lavi, batch=1, seed=5))
    assert not torch.allclose(delta, other, atol=1e-3)


def test_08_the_film_control_gives_every_token_the_same(toolbox):
    lavi = toolbox.lavi(conditioner="film")
    delta = first_deltas(lavi, torch.tensor([[5, 9, 5, 11]]), toolbox.encode(lavi, batch=1)).expand(1, 4, -1)
    assert torch.equal(delta[:, 0], delta[:, 1])
    assert delta.abs().max() > 0.01


# --- 9 ----------------------------------------------------------------------------------------------------------


def next_token_loss(lavi, ids, visual):
    logits = lavi(ids, visual=visual).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@pytest.mark.parametrize("conditioner", ALL)
def test_09_gradients_at_the_start_and_after_one_step(toolbox, conditioner, gradients):
    lavi = toolbox.lavi(start=True, conditioner=conditioner)
    lavi.language_model.requires_grad_(False)
    frozen = copy.deepcopy(lavi.language_model.state_dict())
    trainable = {name: p for name, p in lavi.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trainable.values(), lr=0.1)
    ids = toolbox.ids()
    ids_of_place = torch.zeros(2, 16, dtype=torch.long)

    next_token_loss(lavi, ids, toolbox.encode(lavi, tile_ids=ids_of_place)).backward()
    for name, parameter in trainable.items():
        if "out_proj" in name:
            scale, shift = parameter.grad.chunk(2)
            assert scale.abs().max() > 0 and shift.abs().max() > 0, name
        else:
            assert parameter.grad is None or parameter.grad.abs().max() == 0, f"{name} moves before its output does"
    optimizer.step()
    optimizer.zero_grad()

    next_token_loss(lavi, ids, toolbox.encode(lavi, tile_ids=ids_of_place)).backward()
    unused = {"visual_proj.frame_emb", "visual_proj.image_emb"}
    for name, parameter in trainable.items():
        assert name in unused or parameter.grad.abs().max() > 0, f"{name} gets no gradient"
    optimizer.step()
    for name, value in lavi.language_model.state_dict().items():
        assert torch.equal(value, frozen[name]), f"the frozen language model changed at {name}"
    assert all(p.grad is None for p in lavi.language_model.parameters())


# --- 10 ---------------------------------------------------------------------------------------------------------


def gradients_of(lavi, batches):
    """Gradients of several forward passes that are followed by one backward pass."""
    lavi.zero_grad()
    sum(next_token_loss(lavi, ids, visual()) for ids, visual in batches).backward()
    return {name: p.grad.clone() for name, p in lavi.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("placed", [False, True])
def test_10_checkpointing_gives_the_same_gradients(toolbox, family, placed, gradients):
    lavi = toolbox.lavi(family)
    for module in lavi.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
    lavi.train()
    image_ids = torch.arange(16).div(8, rounding_mode="floor").expand(2, 16)

    def context(seed):
        visual = toolbox.encode(lavi, seed=seed, image_ids=image_ids)
        return visual.placed(torch.tensor([[0, 3], [2, 5]]) + seed) if placed else visual

    batches = [(toolbox.ids(seed=s), lambda s=s: context(s)) for s in (0, 1)]
    expected = gradients_of(lavi, batches)
    lavi.gradient_checkpointing_enable()
    seen = gradients_of(lavi, batches)
    assert seen.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(seen[name], expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_10_each_checkpointed_pass_keeps_its_own_view(toolbox, gradients):
    lavi = toolbox.lavi().train()
    image_ids = torch.arange(16).div(8, rounding_mode="floor").expand(2, 16)
    visual = toolbox.encode(lavi, image_ids=image_ids).placed(torch.tensor([[0, 3], [2, 5]])).detach()

    def seen():
        lavi.zero_grad()
        with lavi.seeing(visual):  # two texts of different lengths under one context, then one backward pass
            sum(lavi.language_model(toolbox.ids(length=n)).logits.square().mean() for n in (7, 4)).backward()
        return [p.grad.clone() for p in lavi.cond.parameters() if p.grad is not None]

    expected = seen()
    lavi.gradient_checkpointing_enable()
    for mine, theirs in zip(seen(), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_10_reentrant_checkpointing_is_refused(toolbox, gradients):
    lavi = toolbox.lavi().train()
    lavi.language_model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ValueError, match="reentrant"):
        lavi(toolbox.ids(), visual=toolbox.encode(lavi))


@pytest.mark.parametrize("family", FAMILIES)
def test_10_detach_restores_modules_and_keys(toolbox, family):
    model = toolbox.language_model(family)
    classes = {name: type(module) for name, module in model.named_modules()}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    keys = list(model.state_dict())
    lavi = attach(model, toolbox.config())
    assert [key.removeprefix("language_model.") for key in lavi.state_dict() if "language_model" in key] == keys
    assert detach(lavi) is model
    assert not lavi.backbone.decoder._forward_pre_hooks
    assert {name: type(module) for name, module in model.named_modules()} == classes
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert list(model.state_dict()) == keys
    with pytest.raises(ValueError, match="detached"):
        lavi(toolbox.ids(), visual=None)


def test_10_detach_gives_checkpointing_back_as_it_was(toolbox, gradients):
    lavi = toolbox.lavi().train()
    lavi.gradient_checkpointing_enable()
    functions = [block._gradient_checkpointing_func for block in lavi.backbone.layers]
    lavi(toolbox.ids(), visual=toolbox.encode(lavi))
    assert [block._gradient_checkpointing_func for block in lavi.backbone.layers] != functions
    detach(lavi)
    assert [block._gradient_checkpointing_func for block in lavi.backbone.layers] == functions


# --- 11 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sites", [("attn",), ("ffn",), ("attn", "ffn")])
@pytest.mark.parametrize("layers", ["every:3", "first:1", "last:2", (1, 2)])
def test_11_only_the_listed_norms_are_modulated(toolbox, layers, sites):
    lavi = toolbox.lavi(layers=layers, sites=sites)
    chosen = {"every:3": {0, 3}, "first:1": {0}, "last:2": {2, 3}, (1, 2): {1, 2}}[layers]
    for i in range(4):
        for name, norm in zip(("attn", "ffn"), lavi.backbone.norms(i), strict=True):
            assert isinstance(norm, ViLN) == (i in chosen and name in sites)
    assert not isinstance(lavi.backbone.final_norm, ViLN)


@pytest.mark.parametrize("tiles", [1, 5])
def test_11_no_visual_token_enters_the_language_model(toolbox, tiles):
    lavi, ids = toolbox.lavi(), toolbox.ids()
    seen = []
    for block in lavi.backbone.layers:
        block.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append((args[0].shape[1], kwargs["position_ids"])), with_kwargs=True
        )
    lavi(ids, visual=lavi.encode_vision(toolbox.features(tiles=tiles)))
    assert len(seen) == 4
    for length, positions in seen:
        assert length == 7
        assert torch.equal(positions.expand(2, 7), torch.arange(7).expand(2, 7))


# --- 12 ---------------------------------------------------------------------------------------------------------


def counted_flops(lavi, visual_tokens, text_tokens):
    """Operations of encoding and prefill, counted on tensors without memory."""
    lavi = copy.deepcopy(lavi).to("meta")
    with FlopCounterMode(display=False) as counter:
        visual = lavi.encode_vision(torch.empty(1, visual_tokens, 12, device="meta")) if visual_tokens else None
        ids = torch.zeros(1, text_tokens, dtype=torch.long, device="meta")
        lavi(ids, visual=visual, past_key_values=lavi.backbone.new_cache(), use_cache=True)
    return counter.get_total_flops()


@pytest.mark.parametrize("modulate", ["both", "scale"])
def test_12_counted_flops_equal_the_closed_form(toolbox, modulate):
    lavi = toolbox.lavi(width=32, modulate=modulate)
    plain = counted_flops(lavi, 0, 24)
    cost = {m: counted_flops(lavi, m, 24) - plain for m in (32, 64, 128)}
    for visual_tokens, seen in cost.items():
        expected = conditioner_flops(lavi.config, 32, 4, 24, visual_tokens)
        assert abs(seen / expected - 1) < 0.01, (visual_tokens, seen, expected)
    assert cost[128] - cost[64] == 2 * (cost[64] - cost[32]), "the cost is not linear in the visual tokens"


# --- 13 ---------------------------------------------------------------------------------------------------------


def test_13_visual_cache_bytes_equal_the_formula(toolbox):
    lavi = toolbox.lavi(dtype=torch.bfloat16, layers="every:2")
    visual = lavi.encode_vision(toolbox.features(1, tiles=3).bfloat16())
    assert visual.cache_bytes == visual_cache_bytes(lavi.config, 4, 48) == 48 * 2 * 2 * 8 * 2
    assert visual_cache_bytes(toolbox.config(width=1024, num_heads=16, num_kv_heads=4, layers="every:4"), 28, 729) == (
        729 * 7 * 2 * 256 * 2
    )


# --- 14 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conditioner", ALL)
def test_14_an_adapter_file_on_an_equal_language_model_gives_equal_logits(toolbox, conditioner, tmp_path):
    lavi, ids = toolbox.lavi(conditioner=conditioner), toolbox.ids()
    expected = lavi(ids, visual=toolbox.encode(lavi)).logits
    save_adapter(lavi, tmp_path / "adapter")
    fresh = attach(toolbox.language_model(), toolbox.config(conditioner=conditioner), seed=9)
    load_adapter(fresh, tmp_path / "adapter")
    assert torch.equal(fresh(ids, visual=toolbox.encode(fresh)).logits, expected)


@pytest.mark.parametrize("conditioner", ["attention", "conv"])
def test_14_a_token_in_front_of_an_image_does_not_see_it(toolbox, conditioner):
    lavi, ids = toolbox.lavi(conditioner=conditioner), toolbox.ids(batch=1)
    first, second, third = (toolbox.features(1, seed=s) for s in range(3))
    image_ids = torch.arange(32).div(16, rounding_mode="floor").expand(1, 32)
    starts = torch.tensor([[2, 5]])

    def logits(*images, ids=ids, **kwargs):
        visual = lavi.encode_vision(torch.cat(images, 1), image_ids=image_ids, grid=toolbox.grid).placed(starts)
        return lavi(ids, visual=visual, **kwargs).logits

    one, other = logits(first, second), logits(first, third)
    assert torch.equal(one[:, :2], lavi(ids).logits[:, :2]), "tokens in front of every image are plain"
    torch.testing.assert_close(one[:, :5], other[:, :5], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(one[:, 5], other[:, 5], atol=1e-3)
    changed = logits(third, second)
    assert not torch.allclose(one[:, 2], changed[:, 2], atol=1e-3)

    # The same through a cache, token by token.
    visual = lavi.encode_vision(torch.cat([first, second], 1), image_ids=image_ids, grid=toolbox.grid).placed(starts)
    cache = lavi.backbone.new_cache()
    steps = [lavi(ids[:, i : i + 1], visual=visual, past_key_values=cache, use_cache=True).logits for i in range(7)]
    torch.testing.assert_close(torch.cat(steps, 1), one, rtol=1e-5, atol=2e-5)
