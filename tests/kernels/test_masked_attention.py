"""Attention with every kind of mask against fp64 softmax over the dense matrix, forward and backward."""

import pytest
import torch

from mm.kernels.attention_parts import attention_parts, attention_parts_backward, encode
from mm.kernels.dispatch import Situation
from mm.kernels.masked_attention import PLAIN, STRUCTURED, attention
from mm.kernels.masks import Causal, Facets, Packed, VisualPrefix, dense_mask
from mm.kernels.measure import peak_bytes

CPU = torch.device("cpu")
CASES = [  # mask, queries, keys
    ("causal", 17, 17),
    ("causal", 4, 17),
    ("causal", 1, 9),
    (Packed((3, 8)), 13, 13),
    (Facets((7, 2), ((1, 3), (3, 1, 2))), 13, 13),
    (Facets((4, 3), (1, 3), padding_side="left"), 11, 11),
    (VisualPrefix((4, 0)), 9, 9),
    (VisualPrefix(5), 6, 11),
    (None, 5, 8),
]


def softmax_attention(q, k, v, allowed, bias=None):
    """Row by row, zeros where nothing is allowed."""
    group = q.shape[1] // k.shape[1]
    out = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                keys = allowed[b, 0, i].nonzero().flatten()
                if len(keys):
                    scores = k[b, h // group, keys] @ q[b, h, i] * q.shape[-1] ** -0.5
                    scores = scores if bias is None else scores + bias[b, h, i, keys]
                    out[b, h, i] = scores.softmax(0) @ v[b, h // group, keys]
    return out


def tensors(queries, keys, rng, dtype=torch.float64, heads=4, key_heads=2, size=6):
    """Non-contiguous on purpose: heads and tokens are swapped views."""
    q = torch.randn(2, queries, heads, size, generator=rng, dtype=torch.float64).to(dtype).transpose(1, 2)
    k, v = (
        torch.randn(2, keys, key_heads, size, generator=rng, dtype=torch.float64).to(dtype).transpose(1, 2)
        for _ in range(2)
    )
    return q, k, v


def run(function, inputs, grad):
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    out.backward(grad.to(out.dtype))
    return [out.detach(), *(x.grad for x in leaves)]


def allowed(mask, queries, keys):
    if mask is None:
        return torch.ones(2, 1, queries, keys, dtype=torch.bool)
    return dense_mask(Causal() if mask == "causal" else mask, 2, queries, keys, CPU)


@pytest.mark.parametrize("impl", ["auto", "blocked", "sdpa", "reference"])
@pytest.mark.parametrize(("mask", "queries", "keys"), CASES, ids=str)
def test_values_and_gradients(mask, queries, keys, impl, rng, close):
    if impl == "blocked" and (mask is None or queries == 1):
        pytest.skip("no structure left to use")
    inputs = tensors(queries, keys, rng)
    grad = torch.randn(inputs[0].shape, generator=rng, dtype=torch.float64)
    exact = run(lambda q, k, v: softmax_attention(q, k, v, allowed(mask, queries, keys)), inputs, grad)
    for made, true in zip(run(lambda *x: attention(*x, mask=mask, impl=impl), inputs, grad), exact, strict=True):
        close(made, true)


@pytest.mark.parametrize(("mask", "queries", "keys"), CASES[4:7], ids=str)
@pytest.mark.parametrize("size", [32, 72, 256])
def test_flex_and_head_sizes(mask, queries, keys, size, rng, close):
    q, k, v = tensors(queries, keys, rng, torch.float32, size=size)
    exact = softmax_attention(q.double(), k.double(), v.double(), allowed(mask, queries, keys))
    close(attention(q, k, v, mask=mask), exact, torch.float32)
    if size == 32:
        close(attention(q, k, v, mask=mask, impl="flex"), exact, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_merges_in_float32(dtype, rng, close):
    mask, queries, keys = CASES[4]
    inputs = tensors(queries, keys, rng, dtype)
    grad = torch.randn(inputs[0].shape, generator=rng).to(dtype)
    exact = run(lambda *x: attention(*x, mask=mask, impl="reference"), [x.double() for x in inputs], grad.double())
    for made, true in zip(run(lambda *x: attention(*x, mask=mask), inputs, grad), exact, strict=True):
        close(made, true, dtype)


def test_boolean_tensor_bias_and_empty_rows(rng, close):
    inputs = tensors(5, 7, rng)
    mask = torch.rand(2, 1, 5, 7, generator=rng) < 0.5
    mask[0, 0, 2] = False
    bias = torch.randn(2, 4, 5, 7, generator=rng, dtype=torch.float64)
    grad = torch.randn(inputs[0].shape, generator=rng, dtype=torch.float64)
    exact = run(lambda q, k, v, b: softmax_attention(q, k, v, mask, b), [*inputs, bias], grad)
    for impl in ("sdpa", "reference"):
        made = run(lambda q, k, v, b, i=impl: attention(q, k, v, mask=mask, bias=b, impl=i), [*inputs, bias], grad)
        assert not made[0][0, :, 2].any() and not made[1][0, :, 2].any()
        for ours, true in zip(made, exact, strict=True):
            close(ours, true)


def test_bias_beside_a_structure(rng, close):
    mask, queries, keys = CASES[4]
    q, k, v = tensors(queries, keys, rng)
    bias = torch.randn(2, 4, queries, keys, generator=rng, dtype=torch.float64)
    close(attention(q, k, v, mask=mask, bias=bias), softmax_attention(q, k, v, allowed(mask, queries, keys), bias))


def test_a_facet_is_the_pass_of_prefix_and_facet_alone(rng, close):
    q, k, v = tensors(5 + 2 + 4, 5 + 2 + 4, rng)
    shared = attention(q, k, v, mask=Facets(5, (2, 4)))
    rows = [*range(5), *range(7, 11)]  # the prefix and the second facet
    alone = attention(*(x[:, :, rows] for x in (q, k, v)), mask="causal")
    close(shared[:, :, 7:], alone[:, :, 5:])


def test_gradcheck_through_the_merge(rng):
    q, k, v = (x.requires_grad_() for x in tensors(5, 5, rng, heads=2, key_heads=1, size=2))
    parts = encode(Facets((2, 1), (1, 2)).parts(2, 5, 5))
    torch.autograd.gradcheck(lambda *x: attention_parts(*x, parts, 0.6)[0], (q, k, v))


def test_operators_keep_their_contract(rng):
    q, k, v = (x.contiguous() for x in tensors(7, 7, rng, torch.float32))
    parts = encode(Facets(2, (2, 1)).parts(2, 7, 7))
    torch.library.opcheck(
        attention_parts,
        (q, k, v, parts, 0.6),
        test_utils=("test_schema", "test_faketensor"),  # the log-sum-exp output takes no gradient by design
    )
    out, lse = attention_parts(q, k, v, parts, 0.6)
    assert bool((lse[:, :, 5:] == -torch.inf).all()) and not out[:, :, 5:].any()
    torch.library.opcheck(attention_parts_backward, (out, q, k, v, out, lse, parts, 0.6))
    leaf = q.clone().requires_grad_()
    with pytest.raises(NotImplementedError, match="carries no gradient"):
        attention_parts(leaf, k, v, parts, 0.6)[1][:, :, :5].sum().backward()


@pytest.mark.parametrize(("mask", "queries", "keys"), [CASES[1], CASES[4], CASES[7]], ids=str)
def test_compiles_without_graph_breaks(mask, queries, keys, rng, close):
    inputs = [x.contiguous() for x in tensors(queries, keys, rng, torch.float32)]
    grad = torch.randn(inputs[0].shape, generator=rng)

    def function(q, k, v):
        return attention(q * 2, k, v, mask=mask) + 1

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    for made, true in zip(run(compiled, inputs, grad), run(function, inputs, grad), strict=True):
        close(made, true)


def test_no_matrix_is_allocated_for_a_known_structure():
    def peak(impl, length):
        q = torch.randn(1, 2, length, 8)
        mask = Facets(length // 2, (length // 4, length // 4))
        return peak_bytes(lambda: attention(q, q, q, mask=mask, impl=impl))

    assert peak("sdpa", 4096) > 4096**2  # one byte per pair at least
    assert peak("blocked", 4096) < 4096**2 / 4
    assert peak("blocked", 4096) - peak("blocked", 2048) < 2048 * 2 * 8 * 4 * 10  # ten tensors of the added tokens


def test_decisions():
    half = Situation(device="cuda", capability=(9, 0), dtype=torch.bfloat16, head_dim=128, length=4096)
    assert STRUCTURED.decide(half).impl == "blocked"
    single = Situation(device="cuda", capability=(9, 0), dtype=torch.float32, head_dim=128, length=4096)
    choice = STRUCTURED.decide(single)
    assert choice.impl == "sdpa" and "needs float16 or bfloat16" in choice.reason
    assert "no backward pass" in (STRUCTURED.candidates["flex"].cannot(Situation(needs_grad=True)) or "")
    assert PLAIN.decide(half).impl == "sdpa"


def test_errors_say_what_is_wrong(rng):
    q, k, v = tensors(5, 5, rng)
    with pytest.raises(ValueError, match="K dividing H"):
        attention(q, torch.cat([k, k[:, :1]], 1), torch.cat([v, v[:, :1]], 1))
    with pytest.raises(ValueError, match="must be boolean"):
        attention(q, k, v, mask=torch.zeros(5, 5))
    with pytest.raises(ValueError, match="unknown mask 'casual'"):
        attention(q, k, v, mask="casual")
    with pytest.raises(ValueError, match="no implementation 'triton'"):
        attention(q, k, v, mask=Facets(3, (2,)), impl="triton")


@pytest.mark.gpu
@pytest.mark.parametrize(("mask", "queries", "keys"), CASES, ids=str)
@pytest.mark.parametrize("impl", ["auto", "blocked"])
def test_on_a_gpu(mask, queries, keys, impl, rng, close):
    if impl == "blocked" and (mask is None or queries == 1):
        pytest.skip("no structure left to use")
    inputs = [x.cuda() for x in tensors(queries, keys, rng, torch.bfloat16, size=64)]
    grad = torch.randn(inputs[0].shape, generator=rng).to("cuda", torch.bfloat16)
    exact = run(lambda *x: attention(*x, mask=mask, impl="reference"), [x.double() for x in inputs], grad.double())
    for made, true in zip(run(lambda *x: attention(*x, mask=mask, impl=impl), inputs, grad), exact, strict=True):
        close(made, true, torch.bfloat16)
