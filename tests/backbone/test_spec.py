"""What is known about a family is checked against the model; what is unknown is refused."""

import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, Olmo2Config, OPTConfig, StableLmConfig

from mm.backbone import FAMILIES, BackboneSpec, LanguageBackbone

SIZES = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def build(config):
    with torch.random.fork_rng(devices=[]):
        return AutoModelForCausalLM.from_config(config)


def test_unknown_family_names_the_known_ones_and_the_missing_attribute():
    with pytest.raises(ValueError) as caught:
        LanguageBackbone(build(BloomConfig(vocab_size=32, hidden_size=16, n_layer=1, n_head=2)))
    message = str(caught.value)
    assert "BloomForCausalLM" in message and "'bloom'" in message and "lacks embed_tokens" in message
    assert all(name in message for name in FAMILIES)


def test_post_norm_family_lacks_the_norm_in_front_of_attention():
    config = Olmo2Config(**SIZES, intermediate_size=16, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    with pytest.raises(ValueError, match=r"lacks layers\.0\.input_layernorm"):
        LanguageBackbone(build(config))


def test_variant_without_a_listed_part_is_refused_by_name():
    config = OPTConfig(
        **SIZES, ffn_dim=16, word_embed_proj_dim=16, do_layer_norm_before=False, _remove_final_layer_norm=True
    )
    with pytest.raises(ValueError, match=r"attribute decoder\.final_layer_norm is missing"):
        LanguageBackbone(build(config))


def test_an_unlisted_family_can_be_described():
    config = StableLmConfig(
        **SIZES, num_key_value_heads=2, intermediate_size=16, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    model = build(config).eval()
    with pytest.raises(ValueError, match="fit the Llama layout"):
        LanguageBackbone(model)
    backbone = LanguageBackbone(model, spec=BackboneSpec(family="stablelm", norm_kind="layer"))
    ids = torch.arange(3, 9)[None]
    with torch.no_grad():
        plain = model(ids, output_hidden_states=True, use_cache=False).hidden_states
        assert torch.equal(backbone.final_norm(backbone.hidden_states(ids)), plain[-1])


def test_a_spec_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        LanguageBackbone.tiny("llama").spec.family = "other"


def test_values_that_depend_on_the_model_are_filled_in():
    assert LanguageBackbone.tiny("gemma").spec.embed_scale == pytest.approx(32**0.5)
    assert LanguageBackbone.tiny("llama").spec.embed_scale == 1.0
    assert LanguageBackbone.tiny("gpt_neox").spec.parallel
    assert LanguageBackbone.tiny("phi").spec.shared_norm and not LanguageBackbone.tiny("gpt2").spec.shared_norm


def test_a_headless_model_and_a_peft_model_resolve_to_the_same_parts():
    from peft import LoraConfig, get_peft_model

    model = LanguageBackbone.tiny("opt").model
    headless = LanguageBackbone(model.base_model)
    assert headless.layers is LanguageBackbone(model).layers and headless.head is None
    with pytest.raises(ValueError, match="no language-model head"):
        headless.generate(torch.ones(1, 2, dtype=torch.long))
    wrapped = LanguageBackbone(get_peft_model(model, LoraConfig(r=1, target_modules=["fc1"])))
    assert wrapped.layers is headless.layers and wrapped.spec == headless.spec


def test_unknown_tiny_family_and_size_are_named():
    with pytest.raises(ValueError, match=r"unknown family 'lama'; known: .*llama"):
        LanguageBackbone.tiny("lama")
    with pytest.raises(ValueError, match="unknown size hidden_size; known: vocab_size, width"):
        LanguageBackbone.tiny("llama", hidden_size=8)
    with pytest.raises(ValueError, match="num_heads must divide width"):
        LanguageBackbone.tiny("llama", width=30)


def test_import_mm_leaves_the_backbone_alone():
    import subprocess
    import sys

    code = "import sys, mm; sys.exit('mm.backbone' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
