"""Freezing, low-rank adapters and recomputed activations, for every family."""

import copy

import pytest
import torch
from torch import nn

from mm.backbone import LanguageBackbone, graft
from tests.backbone.conftest import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


class Gained:
    """A learned gain and a dropout on the output of a norm."""

    def forward(self, x):
        return super().forward(x) + self.q_proj(self.dropout(super().forward(x)))


def with_gain(norm):
    graft(norm, Gained)
    norm.q_proj, norm.dropout = nn.Linear(32, 32, bias=False), nn.Dropout(0.5)  # a name that LoRA targets elsewhere
    nn.init.eye_(norm.q_proj.weight)
    return norm


def no_dropout(backbone):
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return backbone


def gradients(backbone, ids):
    backbone.zero_grad()
    backbone.hidden_states(ids, layer=3).square().mean().backward()
    return {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_gives_equal_gradients(backbone, ids):
    no_dropout(backbone).train()
    runs = [0]
    plain = gradients(backbone, ids)
    backbone.layers[0].get_submodule(backbone.spec.attention_norm).register_forward_hook(
        lambda *_: runs.__setitem__(0, runs[0] + 1)
    )
    recomputed = gradients(backbone.gradient_checkpointing(), ids)
    assert runs[0] == 2, "the block must run once forward and once more for the backward pass"
    assert plain.keys() == recomputed.keys() and len(plain) > 10
    for name, value in plain.items():
        torch.testing.assert_close(recomputed[name], value, msg=name)
    runs[0] = 0
    gradients(backbone.gradient_checkpointing(False), ids)
    assert runs[0] == 1


def test_a_frozen_model_still_recomputes_for_its_grafts(backbone, ids):
    no_dropout(backbone)
    norm = with_gain(backbone.norms(1)[0])
    norm.dropout.p = 0.0
    backbone.freeze().train()
    plain, runs = gradients(backbone, ids), [0]
    assert [name.rpartition(".q_proj")[1:] for name in plain] == [(".q_proj", ".weight")]
    norm.register_forward_hook(lambda *_: runs.__setitem__(0, runs[0] + 1))
    recomputed = gradients(backbone.gradient_checkpointing(), ids)
    assert runs[0] >= 2
    for name, value in plain.items():
        torch.testing.assert_close(recomputed[name], value)


def test_frozen_stays_in_evaluation_mode_except_its_grafts(ids):
    backbone = LanguageBackbone.tiny("gpt2")  # has dropout of its own
    norm = with_gain(backbone.norms(1)[0])
    before = {name: p.clone() for name, p in backbone.named_parameters()}
    backbone.freeze().train()
    assert backbone.training and not backbone.model.training and not backbone.layers[0].training
    assert norm.dropout.training
    trainable = [name for name, p in backbone.named_parameters() if p.requires_grad]
    assert trainable == ["model.transformer.h.1.ln_1.q_proj.weight"]
    torch.optim.SGD(backbone.parameters(), lr=1.0).step()
    assert all(torch.equal(p, before[name]) for name, p in backbone.named_parameters())
    assert not backbone.eval().training and not norm.dropout.training
    plain = LanguageBackbone.tiny("gpt2").freeze().train()
    assert torch.equal(plain.hidden_states(ids), plain.hidden_states(ids)), "no dropout inside a frozen model"


def test_dropout_inside_a_recomputed_frozen_block_is_refused():
    backbone = LanguageBackbone.tiny("opt").freeze()
    with pytest.raises(ValueError, match=r"OPTDecoderLayer drops out with p=0\.1"):
        backbone.gradient_checkpointing().train()


def test_reentrant_checkpointing_is_refused(ids):
    backbone = LanguageBackbone.tiny("llama").train()
    backbone.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    for run in (backbone.hidden_states, backbone):
        with pytest.raises(ValueError, match="use_reentrant=True"):
            run(ids)
    backbone.gradient_checkpointing()
    assert torch.isfinite(backbone.hidden_states(ids)).all()


def perturb(backbone):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in backbone.named_parameters():
            if ".lora_" in name:
                p.copy_(0.2 * torch.randn(p.shape, generator=generator))


@torch.no_grad()
def test_lora_on_off_and_merged(backbone, ids):
    keys, plain = set(backbone.state_dict()), backbone(ids).logits
    backbone.lora(rank=2)
    assert torch.equal(backbone(ids).logits, plain), "adapters start without effect"
    perturb(backbone)
    adapted, early = backbone(ids).logits, backbone.hidden_states(ids, layer=2)
    assert not torch.allclose(adapted, plain, atol=1e-2)
    with backbone.without_lora():
        assert torch.equal(backbone(ids).logits, plain)
    assert torch.equal(backbone(ids).logits, adapted)
    backbone.merge_lora()
    assert set(backbone.state_dict()) == keys
    torch.testing.assert_close(backbone(ids).logits, adapted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(backbone.hidden_states(ids, layer=2), early, atol=1e-4, rtol=1e-4)


def test_lora_trains_every_matrix_of_every_block_and_nothing_else(backbone, ids):
    prefix = next(name for name, module in backbone.named_modules() if module is backbone.layers)
    linear = {name for name, module in backbone.named_modules() if type(module).__name__ in ("Linear", "Conv1D")}
    matrices = {name for name in linear if name.startswith(prefix)}
    backbone.lora(rank=2).train()
    adapted = {name.partition(".lora_")[0] for name, p in backbone.named_parameters() if p.requires_grad}
    assert adapted == matrices and len(matrices) >= 4 * backbone.depth
    perturb(backbone)
    backbone(ids, labels=ids).loss.backward()
    for name, p in backbone.named_parameters():
        assert (p.grad is not None and bool(p.grad.abs().sum() > 0)) == (".lora_" in name), name


@pytest.mark.parametrize("first", ["graft", "lora"])
def test_grafts_stay_trainable_and_unadapted_beside_lora(ids, first):
    backbone = LanguageBackbone.tiny("llama")
    if first == "graft":
        norm = with_gain(backbone.norms(0)[0])
        backbone.lora(rank=2)
    else:
        backbone.lora(rank=2)
        norm = with_gain(backbone.norms(0)[0])
    backbone.freeze().train()
    assert type(norm.q_proj) is nn.Linear and norm.q_proj.weight.requires_grad
    assert any(p.requires_grad for name, p in backbone.named_parameters() if ".lora_" in name)
    assert not any(p.requires_grad for name, p in backbone.named_parameters() if "base_layer" in name)
    backbone.hidden_states(ids).square().mean().backward()
    assert norm.q_proj.weight.grad is not None


def test_lora_errors_are_clear(ids):
    backbone = LanguageBackbone.tiny("phi3")
    with pytest.raises(ValueError, match=r"no linear layer named q_proj; this phi3 model has .*qkv_proj"):
        backbone.lora(targets=("q_proj",))
    with pytest.raises(ValueError, match="no LoRA adapters"):
        backbone.merge_lora()
    backbone.lora()
    with pytest.raises(ValueError, match="adapters already"):
        backbone.lora()
    backbone.merge_lora().lora(rank=1)


def test_adapters_are_listed_once_and_can_be_copied(ids):
    backbone = LanguageBackbone.tiny("llama").lora(rank=2)
    assert not any("_peft" in name for name in backbone.state_dict())
    twin = copy.deepcopy(backbone)
    perturb(twin)
    assert not torch.allclose(twin(ids).logits, backbone(ids).logits, atol=1e-3)
    with twin.without_lora():
        torch.testing.assert_close(twin(ids).logits, backbone(ids).logits)


def test_the_nine_required_families_are_known():
    from mm.backbone import FAMILIES as KNOWN

    assert {LanguageBackbone.tiny(name).spec.family for name in FAMILIES} <= set(KNOWN)
