"""Towers: same numbers as the library's own forward pass at every layer, and no work beyond the layer."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from mm.checkpoint import config_from_dict
from mm.vision import ImagePreprocessing, TowerConfig, build_tower, wrap_tower

KINDS = ["timm", "timm_registers", "timm_siglip", "open_clip", "clip", "siglip"]
LAYERS = [0, 1, 2, 3, -1, -2, -4]
NUM_PREFIX = {"timm": 1, "timm_registers": 5, "timm_siglip": 0, "open_clip": 1, "clip": 1, "siglip": 0}


def hidden_states_of(kind: str, module: nn.Module, pixels: torch.Tensor) -> list[torch.Tensor]:
    """All hidden states by a way the wrappers do not take: the library's full forward, spied on by hooks."""
    if kind in ("clip", "siglip"):
        return list(module(pixels, output_hidden_states=True).hidden_states)
    blocks = module.transformer.resblocks if kind == "open_clip" else module.blocks
    seen = []
    hooks = [blocks[0].register_forward_pre_hook(lambda _m, args: seen.append(args[0]))]
    hooks += [block.register_forward_hook(lambda _m, _a, output: seen.append(output)) for block in blocks]
    module(pixels)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_layer_equals_the_librarys_hidden_state(make_tower, pixels, kind, layer):
    tower = make_tower(kind, layer=layer)
    expected = hidden_states_of(kind, tower.module, pixels)[layer]
    features = tower(pixels)
    prefix = NUM_PREFIX[kind]
    assert features.tokens.shape == (2, 16, 32) and features.grid == (4, 4) and tower.num_tokens == 16
    torch.testing.assert_close(features.tokens, expected[:, prefix:], rtol=0, atol=1e-6)
    if prefix:
        torch.testing.assert_close(features.cls, expected[:, 0], rtol=0, atol=1e-6)
    else:
        assert features.cls is None


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_blocks_beyond_the_layer_do_not_run(make_tower, pixels, kind):
    tower = make_tower(kind, layer=-2)
    ran = []
    for index, block in enumerate(tower.blocks_of(tower.module)):
        block.register_forward_hook(lambda _m, _a, _o, index=index: ran.append(index))
    tower(pixels)
    assert ran == [0, 1] and len(tower.blocks) == 2


@torch.no_grad()
def test_final_norm_is_the_librarys_last_output(make_tower, pixels):
    timm_tower = make_tower("timm", layer=-1, final_norm=True)
    torch.testing.assert_close(timm_tower(pixels).tokens, timm_tower.module.forward_features(pixels)[:, 1:])
    siglip = make_tower("siglip", layer=-1, final_norm=True)
    torch.testing.assert_close(siglip(pixels).tokens, siglip.module(pixels).last_hidden_state)
    open_clip = make_tower("open_clip", layer=-1, final_norm=True)
    without = make_tower("open_clip", layer=-1)
    torch.testing.assert_close(open_clip(pixels).tokens, open_clip.module.ln_post(without(pixels).tokens))


@pytest.mark.parametrize("kind", ["timm", "open_clip", "clip"])
@torch.no_grad()
def test_quick_gelu_is_built_kept_and_different(make_tower, pixels, kind):
    plain, quick = make_tower(kind, activation="gelu"), make_tower(kind, activation="quick_gelu")
    assert (plain.config.activation, quick.config.activation) == ("gelu", "quick_gelu")
    assert (plain(pixels).tokens - quick(pixels).tokens).abs().max() > 1e-3
    again = build_tower(config_from_dict(TowerConfig, json.loads(json.dumps(asdict(quick.config)))))
    again.load_state_dict(quick.state_dict())
    assert torch.equal(again.eval()(pixels).tokens, quick(pixels).tokens)


def test_open_clip_name_decides_the_activation_when_the_config_is_silent(make_tower):
    assert make_tower("open_clip").config.activation == "gelu"
    assert make_tower("open_clip", name="ViT-B-32-quickgelu").config.activation == "quick_gelu"


def test_wrapping_with_the_wrong_activation_is_refused(make_tower):
    tower = make_tower("open_clip", activation="quick_gelu")
    with pytest.raises(ValueError, match="config says activation='gelu', the module has 'quick_gelu'"):
        wrap_tower(tower.module, config=replace(tower.config, activation="gelu"))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_wrap_shares_the_module(make_tower, pixels, kind):
    tower = make_tower(kind)
    wrapped = wrap_tower(tower.module, layer=-2)
    assert wrapped.module is tower.module
    assert torch.equal(wrapped(pixels).tokens, tower(pixels).tokens)


@torch.no_grad()
def test_wrapped_transformers_tower_remembers_its_whole_config(make_tower, pixels):
    tower = make_tower("clip", activation="gelu")
    config = wrap_tower(tower.module).config
    again = build_tower(config_from_dict(TowerConfig, json.loads(json.dumps(asdict(config)))))
    again.load_state_dict(tower.state_dict())
    assert torch.equal(again.eval()(pixels).tokens, tower(pixels).tokens)


def test_wrap_takes_the_picture_half_of_a_whole_clip():
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = CLIPConfig(
        vision_config=sizes | {"patch_size": 8, "image_size": 32}, text_config=sizes | {"vocab_size": 99}
    )
    clip = CLIPModel(config)
    assert wrap_tower(clip).module is clip.vision_model
    with pytest.raises(ValueError, match="not from timm, open_clip, transformers"):
        wrap_tower(nn.Linear(2, 2))


@pytest.mark.parametrize("kind", ["timm", "timm_siglip", "open_clip", "clip", "siglip"])
def test_empty_batch_and_batch_invariance(make_tower, pixels, kind):
    tower = make_tower(kind)
    with torch.no_grad():
        assert tower(pixels[:0]).tokens.shape == (0, 16, 32)
        torch.testing.assert_close(tower(pixels).tokens[1:], tower(pixels[1:]).tokens, rtol=0, atol=1e-6)


def test_frozen_tower_stays_frozen_and_in_evaluation_mode(make_tower, pixels):
    tower = make_tower("timm", options={**make_tower("timm").config.options, "drop_path_rate": 0.9}).freeze()
    nn.Sequential(tower).train()
    assert not tower.training and not tower.module.training
    assert torch.equal(tower(pixels).tokens, tower(pixels).tokens)
    assert not any(p.requires_grad for p in tower.parameters())


def test_unfrozen_tower_passes_gradients_to_the_blocks_that_ran(make_tower, pixels):
    tower = make_tower("timm", layer=-2).train()
    tower(pixels).tokens.square().sum().backward()
    blocks = tower.module.blocks
    assert blocks[1].mlp.fc2.weight.grad.abs().sum() > 0 and blocks[2].mlp.fc2.weight.grad is None


def test_tower_casts_pixels_to_its_own_dtype(make_tower, pixels):
    assert make_tower("clip").bfloat16()(pixels).tokens.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": 4}, "layer 4 does not exist in a tower of 3 blocks; allowed: -4..3"),
        ({"name": "vit_tinny_patch16_224"}, "did you mean vit_tiny_patch16_224"),
        ({"options": {"img_size": 64}}, "set preprocessing.size instead"),
        ({"activation": "relu"}, "activation must be one of"),
        ({"library": "torchvision"}, "library must be one of"),
    ],
)
def test_bad_configs_say_what_is_allowed(make_tower, changes, message):
    with pytest.raises(ValueError, match=message):
        make_tower("timm", **changes)


def test_openai_weights_without_quick_gelu_are_refused_before_any_download():
    with pytest.raises(ValueError, match="need QuickGELU"):
        build_tower(TowerConfig(library="open_clip", name="ViT-B-32"), weights="openai")


def test_wrong_picture_size_names_both(make_tower):
    with pytest.raises(ValueError, match=r"must be \(B, 3, 32, 32\).*got \(1, 3, 48, 32\)"):
        make_tower("timm")(torch.zeros(1, 3, 48, 32))


def test_rectangular_input_has_a_rectangular_grid(make_tower):
    tower = make_tower("timm", preprocessing=ImagePreprocessing(size=(16, 32)))
    assert tower.grid == (2, 4) and tower(torch.zeros(1, 3, 16, 32)).tokens.shape == (1, 8, 32)
