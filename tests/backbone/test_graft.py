"""Class grafts: nothing about the module changes but what it computes, and everything can be taken back."""

import copy

import pytest
import torch
from torch import nn

from mm.backbone import LanguageBackbone, graft, ungraft
from mm.backbone.graft import grafted, grafted_children, grafted_parameters


class Shifted:
    """Adds a learned shift that starts at zero."""

    def forward(self, x):
        return super().forward(x) + self.shift(x.new_ones(1)) * self.gain


class Doubled:
    def forward(self, x):
        return 2 * super().forward(x)


def with_shift(module, start=0.0):
    graft(module, Shifted)
    module.shift = nn.Linear(1, 32, bias=False)
    module.gain = nn.Parameter(torch.ones(()))
    nn.init.constant_(module.shift.weight, start)
    return module


@pytest.fixture
def backbone():
    return LanguageBackbone.tiny("llama", depth=2)


@pytest.fixture
def ids():
    return torch.arange(3, 15).reshape(2, 6)


def test_graft_keeps_path_type_keys_and_result(backbone, ids):
    before_keys, before = set(backbone.state_dict()), backbone.model(ids).logits
    norm, kind = backbone.norms(1)[0], type(backbone.norms(1)[0])
    with_shift(norm)
    assert backbone.layers[1].input_layernorm is norm and isinstance(norm, kind)
    assert before_keys < set(backbone.state_dict())
    assert torch.equal(backbone.model(ids).logits, before)
    nn.init.constant_(norm.shift.weight, 0.5)
    assert not torch.allclose(backbone.model(ids).logits, before), "the graft must be able to change the result"


def test_ungraft_restores_class_keys_and_attributes(backbone, ids):
    norm = backbone.norms(0)[1]
    kind, keys, attributes, before = type(norm), set(backbone.state_dict()), set(vars(norm)), backbone.model(ids).logits
    with_shift(norm, start=0.5).note = "plain attribute"
    ungraft(norm)
    assert type(norm) is kind and set(vars(norm)) == attributes and set(backbone.state_dict()) == keys
    assert torch.equal(backbone.model(ids).logits, before)
    with pytest.raises(ValueError, match="carries no graft"):
        ungraft(norm)


def test_grafts_nest_and_come_off_in_reverse(backbone):
    norm = backbone.norms(0)[0]
    x = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    plain = norm(x)
    with_shift(norm, start=1.0)
    graft(norm, Doubled)
    torch.testing.assert_close(norm(x), 2 * (plain + 1))
    ungraft(norm)
    torch.testing.assert_close(norm(x), plain + 1)
    assert hasattr(norm, "shift"), "removing the outer graft must leave the inner one whole"
    torch.testing.assert_close(ungraft(norm)(x), plain)


def test_one_class_for_equal_grafts(backbone):
    first, second = (graft(norm, Doubled) for norm in backbone.norms(0))
    assert type(first) is type(second)


def test_same_mixin_twice_and_patched_forward_are_refused(backbone):
    first, second = backbone.norms(0)
    graft(first, Doubled)
    with pytest.raises(ValueError, match="already carries Doubled"):
        graft(first, Doubled)
    second.forward = lambda x: x
    with pytest.raises(ValueError, match="no effect"):
        graft(second, Doubled)


def test_only_attached_parts_are_listed(backbone):
    norm = with_shift(backbone.norms(0)[0])
    assert list(grafted(backbone)) == [norm]
    assert list(grafted_children(backbone)) == [norm.shift]
    assert {id(p) for p in grafted_parameters(backbone)} == {id(norm.shift.weight), id(norm.gain)}


def test_a_saved_grafted_model_opens_in_plain_transformers(backbone, ids, tmp_path):
    from transformers import LlamaForCausalLM

    plain = backbone.model(ids).logits
    with_shift(backbone.norms(0)[0], start=0.5)
    backbone.model.save_pretrained(tmp_path)
    loaded, info = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and sorted(info["unexpected_keys"]) == [
        "model.layers.0.input_layernorm.gain",
        "model.layers.0.input_layernorm.shift.weight",
    ]
    assert torch.equal(loaded.eval()(ids).logits, plain)


@pytest.mark.parametrize("first", ["graft", "peft"])
def test_graft_and_peft_in_either_order(backbone, ids, first):
    from peft import LoraConfig, get_peft_model

    plain = backbone.model(ids).logits
    norm = backbone.norms(0)[0]
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    if first == "graft":
        with_shift(norm, start=0.5)
        shifted = backbone.model(ids).logits
        peft_model = get_peft_model(backbone.model, lora).eval()
    else:
        peft_model = get_peft_model(backbone.model, lora).eval()
        with_shift(norm, start=0.5)
        with peft_model.disable_adapter():
            shifted = peft_model(ids).logits
    assert peft_model.get_base_model().model.layers[0].input_layernorm is norm
    with peft_model.disable_adapter():
        assert torch.equal(peft_model(ids).logits, shifted) and not torch.allclose(shifted, plain)
    adapted = peft_model(ids).logits
    assert not torch.allclose(adapted, shifted)
    torch.testing.assert_close(peft_model.merge_and_unload()(ids).logits, adapted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_grafted_model_compiles_in_one_graph(ids):
    backbone = LanguageBackbone.tiny("llama", depth=1)
    norm = with_shift(backbone.norms(0)[0], start=0.5)
    compiled = torch.compile(backbone.hidden_states, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids), backbone.hidden_states(ids))
    norm.shift.weight.fill_(2.0)
    torch.testing.assert_close(compiled(ids), backbone.hidden_states(ids))


def test_a_grafted_model_can_be_copied(backbone, ids):
    norm = with_shift(backbone.norms(0)[0], start=0.5)
    twin = copy.deepcopy(backbone)
    assert torch.equal(twin.hidden_states(ids), backbone.hidden_states(ids))
    ungraft(twin.norms(0)[0])
    assert hasattr(norm, "shift") and not hasattr(twin.norms(0)[0], "shift")
