"""OpenELM against a slow, plain reading of the architecture, and its published folder layout."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from mm.backbone import LanguageBackbone
from mm.backbone.openelm import OpenELMConfig, OpenELMForCausalLM

IDS = torch.tensor([[5, 9, 33, 7, 20, 11]])


def by_hand(tensors, config, ids):
    """Logits of one row, token by token and head by head, from the published tensors."""

    def rms(x, w):
        return w * x / torch.sqrt((x * x).mean() + 1e-6)

    def rotated(x, position):
        out = x.clone()
        half = len(x) // 2
        for e in range(half):
            angle = position * 10000 ** (-2 * e / len(x))
            out[e] = x[e] * math.cos(angle) - x[e + half] * math.sin(angle)
            out[e + half] = x[e + half] * math.cos(angle) + x[e] * math.sin(angle)
        return out

    stream = [tensors["transformer.token_embeddings.weight"][i] for i in ids]
    for n in range(config.num_transformer_layers):
        w = {k.split(f"layers.{n}.")[1]: v for k, v in tensors.items() if f"layers.{n}." in k}
        heads, groups, size = config.num_query_heads[n], config.num_kv_heads[n], config.head_dim
        queries, keys, values = [], [], []
        for position, x in enumerate(stream):
            rows = (w["attn.qkv_proj.weight"] @ rms(x, w["attn_norm.weight"])).split(size)
            queries.append([rotated(rms(r, w["attn.q_norm.weight"]), position) for r in rows[:heads]])
            keys.append([rotated(rms(r, w["attn.k_norm.weight"]), position) for r in rows[heads : heads + groups]])
            values.append(rows[heads + groups :])
        after = []
        for t, x in enumerate(stream):
            mixed = []
            for h in range(heads):
                g = h * groups // heads
                scores = torch.stack([queries[t][h] @ keys[s][g] for s in range(t + 1)]) / math.sqrt(size)
                mixed.append(sum(p * values[s][g] for s, p in enumerate(scores.softmax(0))))
            x = x + w["attn.out_proj.weight"] @ torch.cat(mixed)
            gate, value = (w["ffn.proj_1.weight"] @ rms(x, w["ffn_norm.weight"])).chunk(2)
            after.append(x + w["ffn.proj_2.weight"] @ (gate * torch.sigmoid(gate) * value))
        stream = after
    last = torch.stack([rms(x, tensors["transformer.norm.weight"]) for x in stream])
    return last @ tensors["transformer.token_embeddings.weight"].T


@torch.no_grad()
def test_logits_equal_a_plain_reading_of_the_published_layout(tmp_path):
    backbone = LanguageBackbone.tiny("openelm")
    backbone.model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert not any("lm_head" in key for key in tensors), "the head is tied and not stored"
    expected = by_hand(tensors, backbone.config, IDS[0])
    for implementation in ("sdpa", "eager"):
        loaded = LanguageBackbone.from_pretrained(tmp_path, attn_implementation=implementation)
        torch.testing.assert_close(loaded(IDS).logits[0], expected, atol=1e-4, rtol=1e-4)


def test_a_folder_with_the_published_names_loads(tmp_path):
    """Key names of the published files, written down here independently of the classes."""
    config = {
        "model_type": "openelm",
        "architectures": ["OpenELMForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_openelm.OpenELMConfig"},
        "activation_fn_name": "swish",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "ffn_dim_divisor": 8,
        "ffn_multipliers": [0.5, 2.0],
        "ffn_with_glu": True,
        "head_dim": 8,
        "max_context_length": 32,
        "model_dim": 16,
        "normalization_layer_name": "rms_norm",
        "normalize_qk_projections": True,
        "num_gqa_groups": 2,
        "num_kv_heads": [1, 2],
        "num_query_heads": [2, 4],
        "num_transformer_layers": 2,
        "rope_freq_constant": 10000,
        "rope_max_length": 64,
        "share_input_output_layers": True,
        "vocab_size": 40,
    }
    shapes = {"transformer.token_embeddings.weight": (40, 16), "transformer.norm.weight": (16,)}
    for n, (queries, keys, inner) in enumerate([(2, 1, 8), (4, 2, 32)]):
        shapes |= {
            f"transformer.layers.{n}.attn.qkv_proj.weight": ((queries + 2 * keys) * 8, 16),
            f"transformer.layers.{n}.attn.out_proj.weight": (16, queries * 8),
            f"transformer.layers.{n}.attn.q_norm.weight": (8,),
            f"transformer.layers.{n}.attn.k_norm.weight": (8,),
            f"transformer.layers.{n}.ffn.proj_1.weight": (2 * inner, 16),
            f"transformer.layers.{n}.ffn.proj_2.weight": (16, inner),
            f"transformer.layers.{n}.attn_norm.weight": (16,),
            f"transformer.layers.{n}.ffn_norm.weight": (16,),
        }
    (tmp_path / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    tensors = {key: 0.3 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    backbone = LanguageBackbone.from_pretrained(tmp_path)
    assert type(backbone.model) is OpenELMForCausalLM
    with torch.no_grad():
        expected = by_hand(tensors, backbone.config, IDS[0])
        torch.testing.assert_close(backbone(IDS).logits[0], expected, atol=1e-4, rtol=1e-4)


def test_default_sizes_are_the_450m_model():
    """Counted from the paper's table: heads per block, and feed-forward widths to the nearest multiple of 256."""
    heads = [(12, 3)] * 3 + [(16, 4)] * 7 + [(20, 5)] * 6 + [(24, 6)] * 4
    inner = [768, 1024, 1280, 1536, 1792, 2304, 2560, 2816, 3072, 3328]
    inner += [3584, 3840, 4096, 4352, 4608, 5120, 5376, 5632, 5888, 6144]
    blocks = (
        64 * (2 * q + 2 * kv) * 1536 + 3 * width * 1536 + 2 * 1536 + 2 * 64
        for (q, kv), width in zip(heads, inner, strict=True)
    )
    with torch.device("meta"):
        model = OpenELMForCausalLM(OpenELMConfig())
    assert sum(p.numel() for p in model.parameters()) == 32000 * 1536 + sum(blocks) + 1536


def test_training_loss_is_next_token_cross_entropy():
    model = LanguageBackbone.tiny("openelm").model
    out = model(IDS, labels=IDS)
    expected = torch.nn.functional.cross_entropy(out.logits[0, :-1], IDS[0, 1:])
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(model(IDS, logits_to_keep=1).logits, out.logits[:, -1:], atol=1e-5, rtol=1e-5)


def test_bad_configs_are_refused():
    with pytest.raises(ValueError, match="num_query_heads needs an entry per block, got 20"):
        OpenELMConfig(num_transformer_layers=21)
    with pytest.raises(ValueError, match="block 0: num_kv_heads=5 must divide num_query_heads=12"):
        OpenELMConfig(num_kv_heads=[5] * 20)
    with pytest.raises(ValueError, match="exactly one of input_ids"):
        LanguageBackbone.tiny("openelm").model.transformer()
