"""The image tower: reference numbers, order of head and pooling, files of the authors and of other libraries."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from mm.encoders.flame import FlameImageEncoder, FlameVisionConfig, flame_config
from mm.encoders.flame.config import vit
from mm.encoders.flame.convert import load_flame_checkpoint, to_flame, to_open_clip, to_timm
from mm.encoders.flame.presets import flame_tiny
from mm.vision import ImagePreprocessing, TowerConfig
from tests.encoders.flame.conftest import read, relative

SMALL = FlameVisionConfig(tower=vit("ViT-B-16", size=32, patch_size=8, width=64, layers=2), text_width=24, hidden=40)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The fixture as the authors would publish it: a `.pt` file, every key behind `module.`."""
    tensors, meta = read("flame_image.safetensors")
    state = {f"module.{key[8:]}": value for key, value in tensors.items() if key.startswith("weights.")}
    path = tmp_path_factory.mktemp("published") / "flame.pt"
    torch.save({"epoch": 3, "name": "tiny", "state_dict": state}, path)
    return path, tensors, json.loads(meta["config"]), state


@pytest.fixture(scope="module")
def model(published):
    return load_flame_checkpoint(published[0])[0]


@torch.no_grad()
def test_outputs(model, published):
    tensors = published[1]
    pixels = tensors["pixel_values"]
    assert relative(model.tokens(pixels), tensors["expected.tokens"]) < 1e-5
    assert relative(model(pixels), tensors["expected.image_embedding"]) < 1e-5
    assert relative(model.visual_only(pixels), tensors["expected.visual_only"]) < 1e-5


def test_sizes_are_read_off_the_file(model, published):
    vision, mm = published[2]["vision_cfg"], published[2]["mm_cfg"]
    assert (
        model.tower.image_size == (vision["image_size"],) * 2 and model.tower.patch_size == (vision["patch_size"],) * 2
    )
    assert model.tower.depth == vision["layers"] and model.tower.width == vision["width"]
    assert model.config.text_width == mm["projector_dim"] and model.config.mlp_depth == mm["mlp_depth"]
    assert model.config.head_hidden == 4096


def test_a_file_with_the_language_model_and_without_bias(published, tmp_path):
    state = {key: value for key, value in published[3].items() if not key.endswith("logit_bias")}
    state["module.text.model.embed_tokens.weight"] = torch.zeros(2, 2)
    torch.save({"state_dict": state}, tmp_path / "self.pt")
    model, report = load_flame_checkpoint(tmp_path / "self.pt")
    assert report.left_out == ("text.model.embed_tokens.weight",) and report.absent == ("logit_bias",)
    assert report.loaded == len(state) - 1 and model.logit_bias is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("module.mm.3.bias"), "missing.*head.3.bias"),
        (lambda s: s.update({"module.visual.extra": torch.zeros(1)}), "unexpected.*tower.module.extra"),
        (lambda s: s.update({"module.mm.2.bias": torch.zeros(3)}), "reshaped.*head.2.bias"),
        (lambda s: s.pop("module.visual.conv1.weight"), "lacks tower.module.conv1.weight"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(published, tmp_path, change, message):
    state = dict(published[3])
    change(state)
    torch.save({"state_dict": state}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=f"(?s){message}"):
        load_flame_checkpoint(tmp_path / "bad.pt")


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        load_flame_checkpoint(tmp_path / "none.pt")
    torch.save({"state_dict": {"a": 1}}, tmp_path / "empty.pt")
    with pytest.raises(ValueError, match="no state_dict of tensors"):
        load_flame_checkpoint(tmp_path / "empty.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "pickle.pt")
    with pytest.raises(ValueError, match="not readable as plain tensors"):
        load_flame_checkpoint(tmp_path / "pickle.pt")


@torch.no_grad()
def test_the_way_out_leads_back(model, published, tmp_path):
    """Our names -> the authors' -> ours; and open_clip and timm give the same tokens with the exported weights."""
    state = {f"module.{key}": value for key, value in to_flame(model).items()}
    assert state.keys() == published[3].keys()
    torch.save({"state_dict": state}, tmp_path / "back.pt")
    pixels, expected = published[1]["pixel_values"], published[1]["expected.tokens"]
    assert torch.equal(load_flame_checkpoint(tmp_path / "back.pt")[0](pixels), model(pixels))

    from open_clip.transformer import VisionTransformer as OpenClip

    other = OpenClip(32, 8, 64, 3, 1, 4.0, output_dim=512, pool_type="avg").eval()
    other.load_state_dict(to_open_clip(model))
    assert relative(other.transformer(other._embeds(pixels)), expected) < 1e-5

    from timm.models.vision_transformer import VisionTransformer as Timm

    third = Timm(32, 8, num_classes=0, embed_dim=64, depth=3, num_heads=1, pre_norm=True, norm_layer=nn.LayerNorm)
    third.load_state_dict(to_timm(model))
    last = third.eval().forward_intermediates(
        pixels, indices=1, norm=False, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
    )[-1]
    assert relative(last[0], expected[:, 1:]) < 1e-5


@torch.no_grad()
def test_the_head_works_before_the_mean(model, published):
    """Pooling first gives something else; class token, final norm and projection have no direct effect."""
    pixels = published[1]["pixel_values"]
    expected = model(pixels)
    pooled = nn.functional.normalize(model.head(model.visual_only(pixels)), dim=-1)
    assert relative(pooled, expected) > 1e-2
    with_class = nn.functional.normalize(model.head(model.tokens(pixels)).mean(dim=1), dim=-1)
    assert relative(with_class, expected) > 1e-3
    changed, _ = load_flame_checkpoint(published[0])
    for name in ("ln_post.weight", "ln_post.bias", "proj"):
        changed.tower.module.get_parameter(name).add_(1.0)
    assert torch.equal(changed(pixels), expected)


def test_published_configurations():
    """Parameters of visual part and head, as the published files have them."""
    with torch.device("meta"):
        for name, visual, head in (("ViT-B-16", 86_192_640, 30_167_040), ("ViT-L-14", 303_966_208, 31_477_760)):
            model = FlameImageEncoder(flame_config(name))
            assert sum(p.numel() for p in model.tower.parameters()) == visual
            assert sum(p.numel() for p in model.head.parameters()) == head
    assert len([key for key in model.state_dict() if key.startswith("tower")]) == 24 * 12 + 8


def test_a_published_checkpoint_has_160_tensors():
    with torch.device("meta"):
        model = FlameImageEncoder(flame_config("ViT-B-16"))
    assert len(to_flame(model)) == 160


def test_any_timm_tower_will_do():
    sizes = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    tower = TowerConfig(name="vit_tiny_patch16_224", options=sizes, layer=-1, preprocessing=ImagePreprocessing(size=32))
    model = FlameImageEncoder(replace(SMALL, tower=tower))
    found = model(torch.randn(2, 3, 32, 32))
    assert found.shape == (2, 24) and relative(found.norm(dim=-1), torch.ones(2)) < 1e-6
    with pytest.raises(ValueError, match="is from timm"):
        to_flame(model)


def test_messages():
    with pytest.raises(ValueError, match="unknown configuration 'B'; there are: ViT-B-16, ViT-L-14, tiny"):
        flame_config("B")
    with pytest.raises(ValueError, match="needs hidden = text_width"):
        FlameVisionConfig(mlp_depth=3, text_width=16, hidden=32)
    with pytest.raises(ValueError, match="pixel_values must be"):
        flame_tiny()(torch.zeros(1, 3, 32, 32))


def test_the_scale_stays_in_its_range():
    model = flame_tiny()
    for value, expected in ((9.0, 100.0), (-3.0, 1.0), (1.0, 2.718281828)):
        with torch.no_grad():
            model.logit_scale.fill_(value)
        model.clamp_scale()
        assert abs(float(model.logit_scale.detach().exp()) - expected) < 1e-3
