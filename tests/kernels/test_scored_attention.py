"""Attention with statistics against a dense fp64 formula, at the sizes and masks that break kernels."""

import pytest
import torch
from torch.library import opcheck

from mm.kernels import attention_statistics, attention_with_scores
from mm.kernels.measure import peak_bytes


def dense(q, k, v, allowed=None, scale=None):
    """Output, probabilities and log-sum-exp in fp64; `allowed` (B, H, N, M) bool. Empty rows give zeros."""
    q, k, v = q.double(), *(t.double().repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
    z = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if allowed is not None:
        z = z.masked_fill(~allowed, -torch.inf)
    p = z.softmax(-1).nan_to_num(0)
    return p @ v, p, z.logsumexp(-1)


def inputs(rng, heads=4, kv_heads=2, queries=33, keys=33, width=16, batch=2, dtype=torch.float32):
    """Random q, k, v in the (B, N, H, D) memory order of attention layers (last dim contiguous, others not)."""
    shapes = [(batch, queries, heads, width), (batch, keys, kv_heads, width), (batch, keys, kv_heads, width)]
    return [torch.randn(shape, generator=rng).to(dtype).transpose(1, 2) for shape in shapes]


def check_all(close, q, k, v, allowed, weights, impl, **options):
    out, scores = attention_with_scores(
        q, k, v, rows="cls", columns=weights, entropy=True, head_reduce="none", impl=impl, **options
    )
    exact, p, lse = dense(q, k, v, allowed)
    counted = torch.ones(q.shape[0], q.shape[2]) if weights is True else weights
    assert out.dtype == q.dtype
    close(out, exact)
    close(scores.rows, p[:, :, 0])
    close(scores.columns, torch.einsum("bn,bhnm->bhm", counted.double().expand(len(q), -1), p))
    close(scores.entropy, torch.special.entr(p).sum(-1))
    full = lse.isfinite()
    close(scores.lse[full], lse[full])
    assert (scores.lse[~full] == -torch.inf).all()


IMPLS = ["blocked", "reference"]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("width", [32, 72, 80, 128, 256])
def test_head_sizes(rng, close, width, impl):
    check_all(close, *inputs(rng, width=width), None, True, impl)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(rng, close, dtype, impl):
    q, k, v = inputs(rng, width=32, dtype=dtype)
    check_all(close, q, k, v, None, True, impl)
    assert attention_with_scores(q, k, v, columns=True)[1].columns.dtype != torch.bfloat16


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 40), (17, 5), (5, 17)])
@pytest.mark.parametrize("causal", [False, True])
def test_lengths_and_causality(rng, close, queries, keys, causal, impl):
    q, k, v = inputs(rng, queries=queries, keys=keys)
    allowed = torch.ones(2, 4, queries, keys, dtype=torch.bool)
    weights = torch.rand(queries, generator=rng)
    check_all(close, q, k, v, allowed.tril() if causal else allowed, weights, impl, is_causal=causal)


@pytest.mark.parametrize("impl", IMPLS)
def test_many_blocks(rng, close, monkeypatch, impl):
    monkeypatch.setattr(attention_statistics, "_BLOCK", 300)  # 33 keys x 2 heads per key head: blocks of 4 queries
    q, k, v = inputs(rng)
    allowed = torch.rand(2, 1, 33, 33, generator=rng) < 0.5
    allowed[:, :, 7] = False
    check_all(close, q, k, v, allowed.tril().expand(2, 4, 33, 33), True, impl, is_causal=True, mask=allowed)


@pytest.mark.parametrize("impl", IMPLS)
def test_an_additive_mask_means_the_same_as_a_boolean_one(rng, impl):
    q, k, v = inputs(rng)
    keep = torch.rand(1, 4, 33, 33, generator=rng) < 0.7
    add = torch.zeros(keep.shape).masked_fill(~keep, -torch.inf)
    for first, second in zip(
        *(attention_with_scores(q, k, v, columns=True, entropy=True, mask=m, impl=impl)[1] for m in (keep, add)),
        strict=True,
    ):
        assert first is None or torch.equal(first, second)


@pytest.mark.parametrize("impl", IMPLS)
def test_padding_changes_nothing_for_the_real_tokens(rng, impl):
    q, k, v = inputs(rng, queries=20, keys=20, batch=3)
    keep = torch.arange(20) < torch.tensor([20, 13, 0])[:, None]
    options = {"columns": True, "entropy": True, "impl": impl}
    for rows in ("cls", "last", "mean"):
        out, padded = attention_with_scores(q, k, v, rows=rows, mask=keep, **options)
        assert out.isfinite().all() and all(t.isfinite().all() for t in padded[:3])
        assert not out[2].any() and not padded.rows[2].any() and not padded.columns[2].any()  # nothing to attend to
        for sample, length in enumerate((20, 13)):
            cut = [t[sample : sample + 1, :, :length] for t in (q, k, v)]
            alone, scores = attention_with_scores(*cut, rows=rows, **options)
            torch.testing.assert_close(out[sample, :, :length], alone[0])
            torch.testing.assert_close(padded.rows[sample, :length], scores.rows[0])
            torch.testing.assert_close(padded.columns[sample, :length], scores.columns[0])
            torch.testing.assert_close(padded.entropy[sample, :length], scores.entropy[0])
            assert not padded.rows[sample, length:].any() and not padded.columns[sample, length:].any()


@pytest.mark.parametrize("impl", IMPLS)
def test_chosen_rows(rng, close, impl):
    q, k, v = inputs(rng, queries=12, keys=12)
    _, p, _ = dense(q, k, v, torch.ones(2, 4, 12, 12, dtype=torch.bool).tril())
    for index in (torch.tensor([3, -1]), torch.tensor([[0, 5], [11, 2]])):
        rows = attention_with_scores(q, k, v, rows=index, is_causal=True, impl=impl)[1].rows
        exact = torch.stack([p[b][:, index.expand(2, 2)[b]].mean(0) for b in range(2)])
        close(rows, exact)
    last = attention_with_scores(q, k, v, rows="last", is_causal=True, impl=impl)[1].rows
    close(last, p[:, :, -1].mean(1))
    centre = q.mean(2, keepdim=True)
    close(attention_with_scores(q, k, v, rows="mean", impl=impl)[1].rows, dense(centre, k, v)[1].mean(1)[:, 0])


def test_column_sums_are_the_value_gradient_for_an_output_gradient_of_ones(rng, close):
    q, k, v = inputs(rng, kv_heads=4, width=8)
    v = v.clone().requires_grad_()
    torch.nn.functional.scaled_dot_product_attention(q, k, v).sum().backward()
    close(attention_with_scores(q, k, v.detach(), columns=True, head_reduce="none")[1].columns, v.grad[..., 0])


def test_the_output_keeps_its_gradient_and_the_statistics_have_none(rng):
    q, k, v = (t.double().requires_grad_() for t in inputs(rng, queries=5, keys=5, width=4))
    keep = torch.arange(5) < torch.tensor([5, 3])[:, None]

    def f(q, k, v):
        out, scores = attention_with_scores(q, k, v, rows="cls", columns=True, entropy=True, mask=keep, is_causal=True)
        assert not any(t.requires_grad for t in scores)
        return out

    assert torch.autograd.gradcheck(f, (q, k, v))


def test_rows_first_and_plain_attention_is_bit_equal(rng):
    q, k, v = inputs(rng, kv_heads=4)
    out, scores = attention_with_scores(q, k, v, rows="cls")
    assert torch.equal(out, torch.nn.functional.scaled_dot_product_attention(q, k, v))
    assert scores.columns is scores.entropy is scores.lse is None


def test_memory_grows_with_tokens_and_not_with_their_square(rng):
    def peak(tokens):
        q, k, v = inputs(rng, queries=tokens, keys=tokens, heads=2, batch=1, width=8)
        return peak_bytes(lambda: attention_with_scores(q, k, v, rows="cls", columns=True, entropy=True))

    short, long = peak(512), peak(2048)
    assert long < 3e6 < 2 * 2048**2 * 4 / 10
    assert long - short < 1536 * 400  # bytes per further token


def test_wrong_inputs_are_named(rng):
    q, k, v = inputs(rng)
    with pytest.raises(ValueError, match=r"key heads divide query heads, got q \(2, 3, 33, 16\)"):
        attention_with_scores(q[:, :3], k, v)
    with pytest.raises(ValueError, match=r"mask must be bool \(2, 33\)"):
        attention_with_scores(q, k, v, mask=torch.ones(2, 32, dtype=torch.bool))
    with pytest.raises(ValueError, match="unknown rows 'first'; choose cls, last, mean"):
        attention_with_scores(q, k, v, rows="first")
    with pytest.raises(ValueError, match="impl='triton' cannot run"):
        attention_with_scores(q, k, v, rows="cls", impl="triton")
    with pytest.raises(ValueError, match="unknown head_reduce 'max'"):
        attention_with_scores(q, k, v, head_reduce="max")


def test_custom_ops_are_well_formed(rng):
    q, k, v = inputs(rng, queries=6, keys=6)
    mask, weights = torch.ones(2, 1, 1, 6, dtype=torch.bool), torch.ones(2, 6)
    opcheck(torch.ops.mm.attention_statistics.default, (q, k, v, mask, weights, True, 0.5, True, True, "blocked"))
    opcheck(torch.ops.mm.attention_statistics.default, (q, k, None, None, None, False, 0.5, True, False, "blocked"))
    opcheck(torch.ops.mm.attention_rows.default, (q[:, :, :1], k, mask, 0.5, True, "blocked"))


def test_compiles_without_graph_breaks(rng):
    q, k, v = inputs(rng, queries=6, keys=6)
    q.requires_grad_()

    def f(q, k, v):
        out, scores = attention_with_scores(q, k, v, rows="last", columns=True, entropy=True, is_causal=True)
        return out.sum() + scores.columns.sum() + scores.rows.sum() + scores.entropy.sum()

    value = torch.compile(f, fullgraph=True, backend="aot_eager")(q, k, v)
    value.backward()
    plain = q.grad
    q.grad = None
    f(q, k, v).backward()
    torch.testing.assert_close(plain, q.grad)
