"""Attaching to real set-ups: families, peft, copies, threads, compilation, and the refusals."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from transformers import AutoModelForCausalLM, Olmo2Config

from mm.backbone import BackboneSpec
from mm.encoders.lavi import LaviConfig, ViLN, attach, detach


@pytest.mark.parametrize("family", ["mistral", "qwen3", "gemma2", "gemma3_text", "phi3", "phi", "gpt2", "gpt_neox"])
def test_every_family_is_plain_at_the_start_and_sees_afterwards(toolbox, family):
    plain = toolbox.language_model(family)
    ids = toolbox.ids()
    expected = plain(ids).logits
    lavi = attach(plain, toolbox.config())
    visual = toolbox.encode(lavi)
    assert torch.equal(lavi(ids, visual=visual).logits, expected)
    toolbox.randomise(lavi)
    assert not torch.allclose(lavi(ids, visual=visual).logits, expected, atol=1e-2)
    assert torch.equal(detach(lavi)(ids).logits, expected)


def test_gemma2_modulates_the_norm_in_front_of_the_feed_forward(toolbox):
    lavi = toolbox.lavi("gemma2", layers=(1,))
    carriers = [name for name, module in lavi.language_model.named_modules() if isinstance(module, ViLN)]
    assert carriers == ["model.layers.1.input_layernorm", "model.layers.1.pre_feedforward_layernorm"]


def test_phi_has_one_site_because_it_has_one_norm(toolbox):
    lavi = toolbox.lavi("phi", layers=(1,))
    assert lavi.sites == ("attn",) and not hasattr(lavi.cond.block(1), "ffn")
    with pytest.raises(ValueError, match="one norm for both"):
        toolbox.lavi("phi", sites=("ffn",))


def test_post_norm_models_are_refused_with_the_reason(toolbox):
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Olmo2Config(**sizes, intermediate_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    olmo = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match="normalises behind attention"):
        attach(olmo, toolbox.config())
    opt = toolbox.language_model("opt")
    opt.config.do_layer_norm_before = False
    with pytest.raises(ValueError, match="normalises behind attention"):
        attach(opt, toolbox.config())


def test_an_explicit_layout_is_taken(toolbox):
    model = toolbox.language_model("llama")
    spec = BackboneSpec(family="llama", feed_forward_norm="input_layernorm")
    lavi = attach(model, toolbox.config(), spec=spec)
    assert lavi.sites == ("attn",)


def test_a_second_adapter_and_half_done_surgery_are_refused(toolbox):
    lavi = toolbox.lavi()
    with pytest.raises(ValueError, match="carries LaVi already"):
        attach(lavi.language_model, toolbox.config())
    with pytest.raises(ValueError, match="detached already"):
        detach(lavi) and detach(lavi)

    model = toolbox.language_model()
    broken = model.model.layers[2].post_attention_layernorm
    broken.forward = broken.forward  # what kernel patches and offloading hooks do
    with pytest.raises(ValueError, match="replaced on this instance"):
        attach(model, toolbox.config())
    assert not any(isinstance(module, ViLN) for module in model.modules()), "a failed attach must leave nothing behind"


def test_attach_is_reproducible_and_leaves_the_global_generator_alone(toolbox):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    one = toolbox.lavi(start=True)
    assert torch.equal(torch.rand(2), expected)
    two = toolbox.lavi(start=True)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    other = attach(toolbox.language_model(), toolbox.config(), seed=1)
    assert not torch.equal(one.visual_proj.fc1.weight, other.visual_proj.fc1.weight)


def test_half_precision_language_models_get_float32_conditioners(toolbox):
    lavi = attach(toolbox.language_model(dtype=torch.float16), toolbox.config())
    assert {p.dtype for p in lavi.cond.parameters()} == {torch.float32}
    ids = toolbox.ids()
    assert torch.equal(lavi(ids, visual=toolbox.encode(lavi)).logits, lavi(ids).logits)


# --- peft -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["peft first", "LaVi first"])
def test_lora_before_or_after(toolbox, order, gradients):
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    if order == "peft first":
        lavi = toolbox.randomise(attach(peft.get_peft_model(toolbox.language_model(), lora), toolbox.config()))
    else:
        lavi = toolbox.lavi()
        lavi.language_model = peft.get_peft_model(lavi.language_model, lora)
    adapted = [name for name, _ in lavi.named_parameters() if "lora_" in name]
    assert adapted and all(name.startswith("language_model.") for name in adapted), "LoRA belongs to the language model"

    ids, visual = toolbox.ids(), toolbox.encode(lavi)
    out = lavi(ids, visual=visual).logits
    out.square().mean().backward()
    assert all(p.grad is not None for name, p in lavi.named_parameters() if "lora_" in name or "out_proj" in name)
    with torch.no_grad():
        assert not torch.allclose(out, lavi(ids).logits, atol=1e-2)
        placed = toolbox.encode(lavi, image_ids=torch.zeros(2, 16, dtype=torch.long)).placed(torch.full((2, 1), 3))
        torch.testing.assert_close(lavi(ids, visual=placed).logits[:, :3], lavi(ids).logits[:, :3])
        generated = lavi.generate(ids, visual=visual, max_new_tokens=2, do_sample=False, pad_token_id=0)
        assert generated.shape[1] > ids.shape[1]
        merged = lavi.language_model.merge_and_unload()
        with lavi.seeing(visual):
            torch.testing.assert_close(merged(ids).logits, out, rtol=1e-4, atol=1e-4)


# --- contexts in force ------------------------------------------------------------------------------------------


def test_nested_contexts_restore_the_outer_one_also_after_errors(toolbox):
    lavi, ids = toolbox.lavi(), toolbox.ids()
    one, two = toolbox.encode(lavi, seed=1), toolbox.encode(lavi, seed=2)
    expected = lavi(ids, visual=one).logits
    with lavi.seeing(one):
        assert torch.equal(lavi.language_model(ids).logits, expected)
        inner = lavi(ids, visual=two).logits
        assert not torch.equal(inner, expected)
        with pytest.raises(RuntimeError), lavi.seeing(two):
            raise RuntimeError
        with lavi.seeing(None):
            assert not torch.equal(lavi.language_model(ids).logits, expected)
        assert torch.equal(lavi.language_model(ids).logits, expected)
    assert lavi.stage.frame is None


def test_threads_do_not_see_each_others_pictures(toolbox):
    lavi, ids = toolbox.lavi(), toolbox.ids()
    contexts = [toolbox.encode(lavi, seed=s) for s in range(2)]
    expected = [lavi(ids, visual=visual).logits for visual in contexts]
    inside, seen = threading.Barrier(2), [None, None]

    def work(i):
        with torch.no_grad(), lavi.seeing(contexts[i]):
            inside.wait(timeout=20)  # both contexts are in force now
            seen[i] = lavi.language_model(ids).logits

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(2):
        torch.testing.assert_close(seen[i], expected[i])


def test_a_copy_is_independent(toolbox):
    lavi, ids = toolbox.lavi(), toolbox.ids()
    visual = toolbox.encode(lavi)
    lavi.delta_scale = 0.5
    twin = copy.deepcopy(lavi)
    expected = lavi(ids, visual=visual).logits
    assert torch.equal(twin(ids, visual=visual).logits, expected)
    twin.delta_scale = 0.0
    twin.cond.block(0).site("attn").out_proj.weight.zero_()
    assert torch.equal(lavi(ids, visual=visual).logits, expected)
    assert torch.equal(twin(ids, visual=visual).logits, lavi(ids).logits)
    with lavi.seeing(visual):
        assert torch.equal(twin.language_model(ids).logits, lavi(ids).logits), "the copy obeys its own stage"


def test_vision_dropout_acts_in_training_only(toolbox):
    lavi, ids = toolbox.lavi(vision_dropout=0.5), toolbox.ids(batch=16)
    visual = toolbox.encode(lavi, batch=16)
    plain, full = lavi(ids).logits, lavi(ids, visual=visual).logits
    torch.manual_seed(0)
    mixed = lavi.train()(ids, visual=visual).logits
    without = (mixed == plain).flatten(1).all(1)
    seeing = torch.isclose(mixed, full, atol=1e-5).flatten(1).all(1)
    assert (without ^ seeing).all() and 2 < without.sum() < 14


# --- compilation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padded", [False, True])
def test_compiles_as_one_graph_and_new_pictures_do_not_recompile(toolbox, padded):
    lavi, ids = toolbox.lavi(), toolbox.ids()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(lavi, backend=backend, fullgraph=True)
    mask = torch.arange(16).expand(2, 16) < 12 if padded else None
    for seed in range(4):
        visual = toolbox.encode(lavi, seed=seed, mask=mask)
        expected = lavi(ids, visual=visual, use_cache=False).logits
        torch.testing.assert_close(compiled(ids, visual=visual, use_cache=False).logits, expected, rtol=1e-5, atol=1e-5)
    assert len(graphs) <= 2, f"{len(graphs)} graphs for four pictures of one size"
    torch._dynamo.reset()


# --- configs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": "each:4"}, "write 'every:4'"),
        ({"layers": "every:0"}, "write 'every:4'"),
        ({"layers": "last:9"}, "asks for 9 blocks, the language model has 4"),
        ({"layers": (0, 7)}, "blocks are 0..3"),
        ({"layers": (1, 1)}, "twice"),
        ({"sites": ()}, "sites must name"),
        ({"sites": ("ffn", "norm")}, "sites must name"),
        ({"conditioner": "atention"}, "one of attention, mlp, conv, film, got 'atention'"),
        ({"modulate": "none"}, "modulate must be one of"),
        ({"num_heads": 5}, "num_heads must divide width"),
        ({"num_kv_heads": 3}, "num_kv_heads must divide num_heads"),
        ({"kernel_size": 4}, "odd"),
        ({"vision_dropout": 1.0}, "vision_dropout"),
        ({"vision_width": 0}, "vision_width must be positive"),
        ({"feature_mode": "aligned"}, "lists 1 and layers chooses 2"),
    ],
)
def test_impossible_configs_say_what_is_allowed(toolbox, changes, message):
    with pytest.raises(ValueError, match=message):
        attach(toolbox.language_model(), toolbox.config(**changes))


def test_config_survives_plain_data():
    import json
    from dataclasses import asdict

    from mm.checkpoint import config_from_dict

    config = LaviConfig(vision_width=8, layers=(0, 2), sites=("ffn",), vision_feature_layers=(-2, -6))
    assert config_from_dict(LaviConfig, json.loads(json.dumps(asdict(config)))) == config
