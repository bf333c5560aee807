"""The cost table at full size and its closed forms."""

from __future__ import annotations

import pytest

from mm.encoders.lavi import LaviConfig
from mm.encoders.lavi.flops import conditioner_flops, conditioner_parameters, rows, visual_cache_bytes

# setting, concatenation TFLOP, LaVi TFLOP, saving, vision TFLOP: computed by hand from public backbone shapes, N = 50.
TABLE = [
    ("Vicuna-7B, CLIP-L/336, 1 tile, M=576", 8.58, 1.04, 0.878, 0.37),
    ("Qwen2-7B, so400m/384, 5 tiles, M=3645", 54.29, 4.05, 0.925, 3.33),
    ("Qwen2-7B, so400m/384, 10 tiles, M=7290", 113.26, 7.43, 0.934, 6.65),
    ("Qwen2-7B, CLIP-L/336 (baseline so400m/384), 5 tiles, M=2880", 54.29, 2.54, 0.953, 1.83),
    ("Qwen2-7B, CLIP-L/336 (baseline so400m/384), 10 tiles, M=5760", 113.26, 4.41, 0.961, 3.65),
    ("Qwen2-7B, so400m/384, 32 frames, M=6272", 111.82, 22.06, 0.803, 21.29),
]


@pytest.mark.parametrize(("row", "expected"), zip(rows(), TABLE, strict=True), ids=[entry[0] for entry in TABLE])
def test_table_at_full_size(row, expected):
    setting, baseline, ours, saving, vision = expected
    assert row["setting"] == setting
    assert row["baseline_tflop"] == pytest.approx(baseline, rel=0.02)
    assert row["ours_tflop"] == pytest.approx(ours, rel=0.02)
    assert row["saving"] == pytest.approx(saving, abs=0.002)
    assert row["vision_tflop"] == pytest.approx(vision, rel=0.02)


def test_parameters_and_caches_at_full_size():
    assert conditioner_parameters(LaviConfig(vision_width=1152), 3584, 28) == pytest.approx(160.0e6, rel=1e-3)
    assert conditioner_parameters(LaviConfig(vision_width=1024), 4096, 32) == pytest.approx(207.6e6, rel=1e-3)
    assert visual_cache_bytes(LaviConfig(vision_width=1152), 28, 729) == pytest.approx(5.2e6, rel=0.01)
    assert visual_cache_bytes(LaviConfig(vision_width=1152), 28, 7290) == pytest.approx(52e6, rel=0.01)
    assert [round(row["cache_mb"], 1) for row in rows()[:3]] == [4.7, 26.1, 52.3]
    assert [round(row["baseline_cache_mb"]) for row in rows()[:3]] == [302, 209, 418]


def test_decoding_one_token_costs_little_more():
    config = LaviConfig(vision_width=1152)
    for visual_tokens, expected in ((729, 0.35e9), (7290, 0.73e9)):
        encoding = conditioner_flops(config, 3584, 28, 0, visual_tokens)
        assert conditioner_flops(config, 3584, 28, 1, visual_tokens) - encoding == pytest.approx(expected, rel=0.02)


def test_parameters_of_a_real_model_equal_the_closed_form(toolbox):
    for modulate, sites in (("both", ("attn", "ffn")), ("shift", ("ffn",))):
        lavi = toolbox.lavi(modulate=modulate, sites=sites, vision_feature_layers=(-2, -5))
        counted = sum(
            parameter.numel()
            for name, parameter in lavi.named_parameters()
            if name.endswith(("fc1.weight", "fc2.weight")) or (name.startswith("cond.") and "norm" not in name)
        )
        assert counted == conditioner_parameters(lavi.config, 32, 4)


def test_other_conditioners_are_refused():
    with pytest.raises(ValueError, match="closed form is for the attention conditioner"):
        conditioner_flops(LaviConfig(vision_width=8, conditioner="conv"), 64, 4, 5, 5)
