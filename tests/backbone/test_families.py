"""One contract for every decoder family, against the plain Hugging Face model."""

import pytest
import torch
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask
from transformers import DynamicCache

from mm.backbone import LanguageBackbone
from tests.backbone.conftest import BlockCalls, pad

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
ROUNDING = {"atol": 2e-5, "rtol": 1e-4}  # float32 sums in another order (padded lengths, cached keys)


def plain_states(backbone, ids, **kwargs):
    with torch.no_grad():
        return backbone.model(ids, output_hidden_states=True, use_cache=False, **kwargs).hidden_states


@torch.no_grad()
def test_hidden_states_are_those_of_the_plain_model(backbone, ids):
    plain = plain_states(backbone, ids)
    for k in range(backbone.depth):
        assert torch.equal(backbone.hidden_states(ids, layer=k), plain[k]), f"block input {k} differs"
    assert torch.equal(backbone.final_norm(backbone.hidden_states(ids)), plain[-1])


@torch.no_grad()
def test_embeddings_may_stand_in_for_ids(backbone, ids):
    assert torch.equal(backbone.hidden_states(backbone.embed(ids), layer=2), backbone.hidden_states(ids, layer=2))
    rows = backbone.embedding.weight[ids]
    torch.testing.assert_close(backbone.embed(ids), rows * backbone.spec.embed_scale)


@torch.no_grad()
@pytest.mark.parametrize("k", [0, 1, 3])
def test_early_exit_runs_only_k_blocks(backbone, ids, k):
    calls = BlockCalls(backbone)
    backbone.hidden_states(ids, layer=k)
    assert calls.counts == [1] * k + [0] * (backbone.depth - k)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(backbone, ids, side):
    alone = backbone.hidden_states(ids)
    padded, mask = pad(ids, side, 5)
    out = backbone.hidden_states(padded, attention=mask)
    torch.testing.assert_close(out[:, 5:] if side == "left" else out[:, :-5], alone, **ROUNDING)
    assert torch.isfinite(out).all()
    assert torch.equal(backbone.hidden_states(padded, attention=mask.bool()), out)


@torch.no_grad()
def test_rows_do_not_see_each_other(backbone, ids):
    both, mask = pad(ids, "left", 3)
    mask[1], both[1, :3] = 1, 5  # the second row is three tokens longer
    out = backbone.hidden_states(both, attention=mask)
    torch.testing.assert_close(out[0, 3:], backbone.hidden_states(ids[:1])[0], **ROUNDING)
    torch.testing.assert_close(out[1], backbone.hidden_states(both[1:])[0], **ROUNDING)


@torch.no_grad()
def test_own_4d_mask_decides_alone(backbone, ids):
    keep = torch.rand(2, 1, 14, 14, generator=torch.Generator().manual_seed(2)) < 0.5
    keep |= torch.eye(14, dtype=torch.bool)  # not causal, no window
    positions = torch.arange(14)[None].expand(2, -1)
    # A float mask means the same to every implementation of the plain model.
    bias = torch.zeros(keep.shape).masked_fill(~keep, torch.finfo(torch.float32).min)
    plain = plain_states(backbone, ids, attention_mask=bias, position_ids=positions)
    torch.testing.assert_close(backbone.hidden_states(ids, layer=3, attention=keep), plain[3], **ROUNDING)
    assert not torch.allclose(backbone.hidden_states(ids, layer=3), plain[3], atol=1e-2)


@torch.no_grad()
def test_a_block_mask_means_the_same_as_its_dense_form(backbone, ids):
    def first_three_seen_by_all(_b, _h, q, k):
        return (q >= k) | (k < 3)

    block = create_block_mask(first_three_seen_by_all, None, None, 14, 14, device="cpu")
    q, k = torch.arange(14)[:, None], torch.arange(14)[None]
    keep = first_three_seen_by_all(0, 0, q, k)[None, None]
    expected = backbone.hidden_states(ids, layer=2, attention=keep)
    assert torch.equal(backbone.hidden_states(ids, layer=2, attention=block), expected)
    assert not torch.allclose(backbone.hidden_states(ids, layer=2), expected, atol=1e-2)


@torch.no_grad()
def test_gaps_in_positions_are_not_borders_of_samples(backbone, ids):
    positions = torch.tensor([0, 1, 2, 3, 10, 11, 12, 30, 31, 32, 33, 34, 35, 36])
    plain = plain_states(backbone, ids, attention_mask=torch.ones_like(ids), position_ids=positions[None].expand(2, -1))
    torch.testing.assert_close(backbone.hidden_states(ids, layer=3, positions=positions), plain[3], **ROUNDING)
    assert not torch.allclose(backbone.hidden_states(ids, layer=3), plain[3], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("padding", [0, 4])
def test_cached_equals_uncached(backbone, ids, padding):
    padded, mask = pad(ids, "left", padding)
    whole = backbone.hidden_states(padded, attention=mask)
    cache, pieces, done = backbone.new_cache(), [], 0
    for size in (9 + padding, 1, 3, 1):
        seen = mask[:, : done + size] if padding else None
        pieces.append(backbone.hidden_states(padded[:, done : done + size], attention=seen, cache=cache))
        done += size
    torch.testing.assert_close(torch.cat(pieces, dim=1)[:, padding:], whole[:, padding:], **ROUNDING)
    assert cache.get_seq_length() == done


@torch.no_grad()
def test_generation_equals_greedy_decoding_by_hand(backbone, ids):
    padded, mask = pad(ids, "left", 3)
    made = backbone.generate(padded, attention_mask=mask, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    row = ids
    for _ in range(4):
        scores = backbone.model(row, use_cache=False).logits[:, -1]
        scores[:, backbone.config.eos_token_id] = -torch.inf  # min_new_tokens forbids the end
        row = torch.cat([row, scores.argmax(dim=-1, keepdim=True)], dim=1)
    assert torch.equal(made[:, -4:], row[:, -4:])


@torch.no_grad()
@pytest.mark.parametrize("silent", ["attention", "feed_forward", "both"])
def test_norms_stand_in_front_of_their_parts(backbone, ids, silent):
    """A block whose two norms give zero adds the same constant to every token; with one of them it does not."""
    norms = dict(zip(("attention", "feed_forward"), backbone.norms(1), strict=True))
    for name in norms if silent == "both" else [silent]:
        for key, parameter in norms[name].named_parameters():
            parameter.fill_(-1.0 if key == "weight" and backbone.spec.norm_kind == "rms1p" else 0.0)
    seen = {}
    for name, norm in norms.items():
        norm.register_forward_hook(lambda _m, args, _out, name=name: seen.update({name: args[0]}))
    before, after = backbone.hidden_states(ids, layer=1), backbone.hidden_states(ids, layer=2)
    spread = (after - before).flatten(0, 1).std(dim=0).max()
    assert (spread < 1e-5) == (silent == "both" or backbone.spec.shared_norm), f"spread {spread}, silent: {silent}"
    assert torch.equal(seen["attention"], before)
    if silent == "feed_forward":
        same_input = torch.equal(seen["feed_forward"].view_as(before), before)
        assert same_input == backbone.spec.parallel, "unless parallel, this norm reads the stream after attention"


@torch.no_grad()
def test_norm_kind_is_what_the_module_computes(backbone):
    x = torch.randn(3, backbone.width, generator=torch.Generator().manual_seed(3)) * 2 + 1
    for norm in (*backbone.norms(0), backbone.final_norm):
        w = norm.weight
        rms = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        expected = {
            "rms": lambda w=w, rms=rms: w * rms,
            "rms1p": lambda w=w, rms=rms: (1 + w) * rms,
            "layer": lambda w=w, norm=norm: nn.functional.layer_norm(x, x.shape[-1:], w, norm.bias),
        }[backbone.spec.norm_kind]()
        torch.testing.assert_close(norm(x), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_head_and_sizes(backbone, ids):
    assert (backbone.width, backbone.depth, len(backbone.layers)) == (32, 4, 4)
    logits = backbone.head(backbone.final_norm(backbone.hidden_states(ids)))
    cap = getattr(backbone.config, "final_logit_softcapping", None)
    logits = cap * torch.tanh(logits / cap) if cap else logits
    torch.testing.assert_close(logits, backbone(ids).logits, **ROUNDING)


@torch.no_grad()
def test_truncated_loading_equals_the_first_blocks(backbone, ids, tmp_path):
    backbone.model.save_pretrained(tmp_path)
    short = LanguageBackbone.from_pretrained(tmp_path, layers=2)
    assert short.depth == 2 and short.head is None and short.tokenizer is None
    expected = backbone.hidden_states(ids, layer=2)
    assert torch.equal(short.hidden_states(ids), expected)
    assert torch.equal(short.model(ids).last_hidden_state, expected)
    whole = LanguageBackbone.from_pretrained(tmp_path)
    assert torch.equal(whole(ids).logits, backbone(ids).logits)


def test_tiny_is_a_function_of_its_seed_and_leaves_the_global_generator_alone(backbone):
    family = backbone.spec.family
    if family == "llama" and backbone.config.tie_word_embeddings:
        family = "smollm"
    state = torch.random.get_rng_state()
    same, other = LanguageBackbone.tiny(family), LanguageBackbone.tiny(family, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    for (name, first), second, third in zip(
        backbone.named_parameters(), same.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(first, second), name
        assert not torch.equal(first, third), name
    assert {backbone.config.pad_token_id, backbone.config.bos_token_id, backbone.config.eos_token_id} == {0, 1, 2}


@torch.no_grad()
def test_wrong_input_is_named(backbone, ids):
    with pytest.raises(ValueError, match=r"layer must lie in 0\.\.4"):
        backbone.hidden_states(ids, layer=5)
    with pytest.raises(ValueError, match=r"expected shape \(2, 14\)"):
        backbone.hidden_states(ids, attention=torch.ones(2, 13))
    with pytest.raises(ValueError, match="2-D padding mask"):
        backbone.hidden_states(ids, attention=torch.zeros(2, 1, 14, 14))
    with pytest.raises(ValueError, match=r"attention: expected .*14, 14"):
        backbone.hidden_states(ids, attention=torch.ones(2, 1, 14, 13, dtype=torch.bool))
    with pytest.raises(ValueError, match="positions"):
        backbone.hidden_states(ids, positions=torch.arange(13))
    keep = torch.ones(1, 1, 14, 14, dtype=torch.bool)
    cache = DynamicCache(config=backbone.config)
    if any(cache.is_sliding):
        with pytest.raises(ValueError, match="sliding window"):
            backbone.hidden_states(ids, attention=keep, cache=cache)
