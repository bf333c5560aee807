"""The registered attention on tiny random models: unchanged numbers, statistics equal to the eager weights."""

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from mm.kernels import hf

SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def language_model(attention, family="llama", **sizes):
    hf.register()
    hf.register()  # idempotent
    ids = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(family, **SIZES, **ids, num_key_value_heads=2, **sizes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32).eval()
    for parameter in model.parameters():  # the default initialisation hides mask errors
        torch.nn.init.normal_(parameter, std=0.15)
    return model


def pair(family="llama", other="sdpa", **sizes):
    ours, theirs = language_model("mm", family, **sizes), language_model(other, family, **sizes)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, 50, (2, 9), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
def test_a_language_model_is_bit_equal_to_sdpa_with_and_without_padding(ids, family):
    ours, theirs = pair(family)
    left = torch.ones_like(ids)
    left[0, :4] = 0
    positions = torch.tensor([[0, 1, 2, 10, 11, 12, 13, 20, 21]]).expand(2, -1)
    for options in (
        {},
        {"attention_mask": left},
        {"position_ids": positions, "use_cache": False},  # transformers takes the gaps for packed samples
        {"position_ids": positions, "attention_mask": torch.ones_like(ids)},
        {"attention_mask": torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(2)) < 0.8},
    ):
        expected = theirs(ids, **options).logits
        assert torch.equal(ours(ids, **options).logits, expected)
        with hf.collect(ours, rows="last", columns=True):
            torch.testing.assert_close(ours(ids, **options).logits, expected)


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
def test_statistics_equal_the_eager_weights(ids, padded):
    ours, eager = pair(other="eager")
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :4] = 0
    maps = torch.stack(eager(ids, attention_mask=mask, output_attentions=True).attentions)  # (L, B, H, N, N)
    real = mask.bool()
    maps = maps * real[None, :, None, :, None]  # eager gives padded queries a uniform row
    with hf.collect(ours, rows="last", columns=mask, entropy=True) as record:
        ours(ids, attention_mask=mask)
    assert [name for name, _ in record.calls] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    torch.testing.assert_close(record.stack("rows"), maps[:, :, :, -1].mean(2))
    torch.testing.assert_close(record.stack("columns"), maps.sum(3).mean(2))
    entropy = torch.special.entr(maps).sum(-1).mean(2)
    torch.testing.assert_close(record.stack("entropy") * real, entropy * real, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("config", "model"), [(CLIPVisionConfig, CLIPVisionModel), (SiglipVisionConfig, SiglipVisionModel)]
)
def test_vision_towers_are_not_causal_and_report_by_module(config, model):
    hf.register()
    torch.manual_seed(0)
    tower = model._from_config(config(**SIZES, image_size=16, patch_size=8), attn_implementation="mm").eval()
    eager = model._from_config(config(**SIZES, image_size=16, patch_size=8), attn_implementation="eager").eval()
    eager.load_state_dict(tower.state_dict())
    pixels = torch.randn(2, 3, 16, 16)
    expected = eager(pixels, output_attentions=True)
    with hf.collect(tower, rows="cls", only="*layers.1.*") as record:
        out = tower(pixels)
    torch.testing.assert_close(out.last_hidden_state, expected.last_hidden_state)
    assert len(record) == 1
    torch.testing.assert_close(record.stack("rows")[0], expected.attentions[1][:, :, 0].mean(1), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_generation_reports_every_step_and_leaves_no_trace(ids):
    model = language_model("mm")
    plain = model.generate(ids, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    with hf.collect(model, rows="last") as record:
        watched = model.generate(ids, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert torch.equal(plain, watched)
    assert [scores.rows.shape[-1] for scores in record.of("model.layers.1.self_attn")] == [9, 10, 11]
    assert not any(hf._REQUEST in module.__dict__ for module in model.modules())
    with pytest.raises(RuntimeError, match="inside"), hf.collect(model, rows="last"):
        raise RuntimeError("inside")
    assert not any(hf._REQUEST in module.__dict__ for module in model.modules())


def test_gradients_flow_while_statistics_are_collected(ids):
    ours, theirs = pair()
    with hf.collect(ours, columns=True):
        ours(ids, labels=ids).loss.backward()
    theirs(ids, labels=ids).loss.backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_mistakes_are_named(ids):
    plain = language_model("sdpa")
    with pytest.raises(ValueError, match=r"runs attn_implementation=sdpa; call .*set_attn_implementation\('mm'\)"):
        with hf.collect(plain, rows="last"):
            pass
    model = language_model("mm")
    with pytest.raises(ValueError, match="no module of LlamaForCausalLM matches only='decoder"):
        with hf.collect(model, only="decoder*"):
            pass
    with hf.collect(model, rows="last") as record:
        pass
    with pytest.raises(ValueError, match="no statistics of 'x'; recorded modules: none"):
        record.of("x")
