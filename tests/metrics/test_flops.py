"""FLOP counting on the meta device, and the closed formulas."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mm.metrics.flops import ExecutedFlops, count_flops, on_meta
from mm.metrics.shapes import CLIP_L_336, QWEN2_7B, SIGLIP_SO400M_384, VICUNA_7B, DecoderShape, ViTShape


def qwen2(**sizes):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("qwen2", attn_implementation="sdpa", **sizes)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.fixture(scope="module")
def qwen2_7b():
    return qwen2(
        hidden_size=3584,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        intermediate_size=18944,
        vocab_size=152064,
    )


# 0.6546 and 117.42 TFLOP: full attention, logits at the last position.
@pytest.mark.parametrize(("tokens", "tflop"), [(50, 0.6546), (7340, 117.42)])
def test_qwen2_7b_without_memory(qwen2_7b, tokens, tflop):
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    counted = count_flops(lambda: qwen2_7b(ids, logits_to_keep=1).logits)
    assert counted / 1e12 == pytest.approx(tflop, rel=2e-4)
    assert counted == pytest.approx(QWEN2_7B.prefill_flops(tokens, causal=False), rel=1e-5)


def test_causal_attention_is_half_of_the_full_one(qwen2_7b):
    ids = torch.zeros(1, 7340, dtype=torch.long, device="meta")
    counted = count_flops(lambda: qwen2_7b(ids).logits, causal_attention=True)
    assert counted == pytest.approx(QWEN2_7B.prefill_flops(7340, causal=True, logits="all"), rel=1e-5)


def test_clip_large_336():
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    with torch.device("meta"):
        model, pixels = CLIPVisionModel(config), torch.empty(1, 3, 336, 336)
    counted = count_flops(lambda: model(pixels).last_hidden_state)
    assert counted / 1e12 == pytest.approx(0.3819, rel=2e-4)
    shape = ViTShape(layers=24, width=1024, feed_forward=4096, tokens=577, patches=576)
    assert counted == pytest.approx(shape.flops(), rel=1e-5)


def test_closed_forms_give_the_published_sizes():
    # linear weights: 6.525e9 and 6.476e9; ViTs: 0.365e12 and 0.665e12
    assert QWEN2_7B.linear_weights == pytest.approx(6.525e9, rel=1e-3)
    assert VICUNA_7B.linear_weights == pytest.approx(6.476e9, rel=1e-3)
    assert CLIP_L_336.flops() == pytest.approx(0.365e12, rel=2e-3)
    assert SIGLIP_SO400M_384.flops() == pytest.approx(0.665e12, rel=2e-3)


# The concatenation column of the LaVi comparison: ViT on every tile, language model on visual and 50 text tokens.
@pytest.mark.parametrize(
    ("decoder", "vit", "tiles", "visual", "tflop"),
    [
        (VICUNA_7B, CLIP_L_336, 1, 576, 8.58),
        (QWEN2_7B, SIGLIP_SO400M_384, 5, 3645, 54.29),
        (QWEN2_7B, SIGLIP_SO400M_384, 10, 7290, 113.26),
        (QWEN2_7B, SIGLIP_SO400M_384, 32, 32 * 196, 111.82),
    ],
)
def test_concatenation_baselines(decoder, vit, tiles, visual, tflop):
    total = vit.flops(tiles) + decoder.prefill_flops(visual + 50, causal=True)
    assert total / 1e12 == pytest.approx(tflop, rel=0.002)


@pytest.mark.parametrize("causal", [False, True])
def test_closed_form_against_the_counter_at_tiny_size(causal):
    shape = DecoderShape(layers=3, width=64, heads=4, kv_heads=2, head_width=16, feed_forward=96, vocab=128)
    model = qwen2(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        vocab_size=128,
    )
    ids = torch.zeros(1, 40, dtype=torch.long, device="meta")
    counted = count_flops(lambda: model(ids).logits, causal_attention=causal)
    # the counter also sees the outer product of the rotary angles
    assert counted == pytest.approx(shape.prefill_flops(40, causal=causal, logits="all"), rel=0.01)


def test_decoding_token_by_token_costs_the_causal_prefill_and_its_diagonal():
    tokens = 6
    steps = sum(QWEN2_7B.decode_flops(context) for context in range(tokens))
    prefill = QWEN2_7B.prefill_flops(tokens, causal=False, logits="all")
    attention = 4 * 28 * 3584
    assert steps == prefill - attention * (tokens**2 - tokens * (tokens + 1) // 2)


def test_cache_bytes():
    # 28 layers, 4 heads of 128 channels, keys and values, 2 bytes: 57,344 bytes per token
    assert QWEN2_7B.cache_bytes(10) == 573_440


def test_backward_is_twice_the_forward_for_a_trainable_inner_layer():
    with torch.device("meta"):
        layer, x = nn.Linear(8, 4, bias=False), torch.empty(3, 8, requires_grad=True)
    forward = count_flops(lambda: layer(x))
    assert forward == 2 * 3 * 8 * 4
    assert count_flops(lambda: layer(x).sum().backward()) == 3 * forward


def test_a_twin_on_meta_counts_a_model_that_lives_on_the_cpu_and_leaves_it_alone():
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 4))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    with on_meta(model, {"x": torch.ones(3, 8)}) as (twin, batch):
        assert count_flops(lambda: twin(batch["x"])) == 2 * 3 * (8 * 16 + 16 * 4)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model[0].weight.device.type == "cpu"
    assert torch.equal(torch.get_rng_state(), random)


def test_a_result_on_the_cpu_is_refused_because_its_attention_would_count_as_nothing():
    q = torch.ones(1, 1, 4, 8)
    with pytest.raises(ValueError, match=r"meta device, found a tensor on cpu"):
        count_flops(lambda: F.scaled_dot_product_attention(q, q, q))


def test_causal_halving_without_an_attention_is_refused():
    x = torch.empty(3, 8, device="meta")
    with pytest.raises(ValueError, match="found no scaled_dot_product_attention"):
        count_flops(lambda: x @ x.T, causal_attention=True)


def test_cross_attention_is_not_halved():
    q, k = torch.empty(1, 2, 4, 8, device="meta"), torch.empty(1, 2, 6, 8, device="meta")

    def both():
        own = F.scaled_dot_product_attention(q, q, q)
        return F.scaled_dot_product_attention(own, k, k)

    assert count_flops(both, causal_attention=True) == 2 * 2 * 4 * (4 // 2 + 6) * (8 + 8)


class Block(nn.Module):
    """Fused attention and a linear layer, with a boolean index that the meta device could not run."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48, bias=False), nn.Linear(16, 4, bias=False)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.out(mixed)[x[..., 0] > -1e9]


LINEARS = 2 * 3 * 10 * 16 * (48 + 4)  # batch 3, 10 tokens
ATTENTION = 2 * 3 * 2 * 10 * 10 * (8 + 8)


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_executed_flops_include_the_fused_attention_of_the_cpu(context):
    model = Block()
    with context(), ExecutedFlops() as counter:
        model(torch.ones(3, 10, 16))
    assert counter.total == LINEARS + ATTENTION


def test_executed_flops_of_a_training_step():
    model, x = Block(), torch.ones(3, 10, 16)
    with ExecutedFlops() as counter:
        model(x).sum().backward()
    # gradients of both weights and of the input of the second layer; five products in the attention's backward
    assert counter.total == LINEARS + ATTENTION + 2 * 3 * 10 * 16 * (48 + 2 * 4) + ATTENTION * 5 // 2


def test_counting_does_not_change_the_numbers():
    model, x = Block(), torch.randn(3, 10, 16, generator=torch.Generator().manual_seed(0))
    expected = model(x)
    with ExecutedFlops():
        assert torch.equal(model(x), expected)
