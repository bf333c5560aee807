"""The score against a plain NumPy reading of paper section 3."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mm.pruning.scores import Heads, ScoreConfig, entropy_ratio, information_flow


def softmax(row):
    grown = np.exp(row - row.max())
    return grown / grown.sum()


def oracle(q, k, v, *, guide="cls", semantic_scale="none", density="head_mean"):
    """Plain loops over heads and tokens; token 0 is the class token when there is one. Returns (attention, score)."""
    heads, length, channels = q.shape
    first = 1 if guide == "cls" else 0
    attention, semantic = np.zeros(length), np.zeros(length)
    for h in range(heads):
        query = q[h, 0] if guide == "cls" else q[h].mean(axis=0)
        value = v[h, 0] if guide == "cls" else v[h].mean(axis=0)
        attention += softmax(np.array([query @ k[h, j] for j in range(length)]) / np.sqrt(channels)) / heads
        if semantic_scale == "none":
            semantic += softmax(np.array([value @ v[h, j] for j in range(length)])) / heads
        else:
            row = softmax(np.array([value @ v[h, j] for j in range(first, length)]) / np.sqrt(channels))
            semantic[first:] += row / heads
    attention, semantic = attention[first:] / attention[first:].sum(), semantic[first:] / semantic[first:].sum()
    if density == "head_mean":
        size = np.array([np.abs(v[:, j].mean(axis=0)).sum() for j in range(first, length)])
    else:
        size = np.array([np.abs(v[:, j]).sum() for j in range(first, length)])
    return attention, (attention + semantic) * size


@pytest.fixture
def qkv():
    return torch.randn(3, 2, 9, 4, generator=torch.Generator().manual_seed(5)).double()  # H = 2, N = 8 + 1, d = 4


def heads_of(qkv):
    q, k, v = (part[None].float() for part in qkv)
    return Heads(q, k, v, scale=4**-0.5)


VARIANTS = [
    {},
    {"semantic_scale": "sqrt"},
    {"density": "full"},
    {"guide": "mean"},
    {"guide": "mean", "semantic_scale": "sqrt"},
]


@pytest.mark.parametrize("options", VARIANTS)
def test_oracle(qkv, options):
    attention, score = oracle(*qkv.numpy(), **options)
    prefix = 0 if options.get("guide") == "mean" else 1
    flow = information_flow(heads_of(qkv), prefix, ScoreConfig(**options))
    np.testing.assert_allclose(flow.attention[0], attention, rtol=1e-5)
    np.testing.assert_allclose(flow.score[0], score, rtol=1e-5)


def test_every_switch_changes_the_result(qkv):
    scores = [information_flow(heads_of(qkv), 1, ScoreConfig(**options)).score for options in VARIANTS[:3]]
    scores += [information_flow(heads_of(qkv), 1, ScoreConfig(criteria=(name,))).score for name in ("attention",)]
    scores += [information_flow(heads_of(qkv), 1, ScoreConfig(criteria=("semantic", "density"))).score]
    for i, first in enumerate(scores):
        for second in scores[i + 1 :]:
            assert not torch.allclose(first, second, rtol=1e-3)


def test_attention_row_equals_log_sum_exp_and_value_gradient(qkv):
    """Two independent ways to the class row: exp(z - lse), and the gradient of fused attention by its values."""
    q, k, v = (part[None].float() for part in qkv)
    row = information_flow(Heads(q, k, v, 0.5), 0, ScoreConfig(criteria=("attention",))).attention
    z = q[:, :, 0:1] @ k.transpose(2, 3) * 0.5
    torch.testing.assert_close(row, (z - z.logsumexp(-1, keepdim=True)).exp().mean(1)[:, 0])
    v = v.clone().requires_grad_()
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=0.5)
    out[:, :, 0, 0].sum().backward()
    torch.testing.assert_close(row, v.grad[..., 0].mean(dim=1))


@pytest.mark.parametrize("guide", ["cls", "mean"])
def test_padding_changes_nothing(qkv, guide):
    heads = heads_of(qkv)
    config = ScoreConfig(guide=guide)
    prefix = 1 if guide == "cls" else 0
    junk = torch.full((1, 2, 3, 4), 7.0)
    wide = Heads(*(torch.cat([part, junk], dim=2) for part in (heads.query, heads.key, heads.value)), heads.scale)
    keep = (torch.arange(12 - prefix) < 9 - prefix)[None]
    plain, padded = information_flow(heads, prefix, config), information_flow(wide, prefix, config, keep)
    torch.testing.assert_close(padded.score[:, : 9 - prefix], plain.score)
    torch.testing.assert_close(padded.attention[:, : 9 - prefix], plain.attention)
    assert float(padded.score[:, 9 - prefix :].abs().max()) == 0
    count = keep.sum(1)
    torch.testing.assert_close(entropy_ratio(padded.attention, count), entropy_ratio(plain.attention))


def test_half_precision_is_scored_in_float32(qkv):
    """A product far outside float16 must neither overflow nor lose the order."""
    heads = heads_of(qkv)
    half = Heads(heads.query.half(), heads.key.half(), (heads.value * 200).half(), heads.scale)
    score = information_flow(half, 1, ScoreConfig()).score
    assert score.dtype == torch.float32 and bool(score.isfinite().all())


def test_entropy_of_a_hard_choice_is_zero_and_of_no_choice_one():
    rows = torch.tensor([[1.0, 0, 0, 0], [0.25] * 4])
    torch.testing.assert_close(entropy_ratio(rows), torch.tensor([0.0, 1.0]))


def test_unknown_criterion():
    with pytest.raises(ValueError, match="criteria must be some of attention, semantic, density"):
        ScoreConfig(criteria=("atention",))
