"""Window attention against a loop over windows in fp64: values, gradients, memory, operator contract."""

import pytest
import torch

from mm.kernels.measure import peak_bytes
from mm.kernels.window_attention import (
    DISPATCH,
    shifted_window_attention,
    window_attention_3d,
    window_attention_backward_op,
    window_attention_op,
)
from mm.kernels.windows import pair_index, relative_position_bias, window_layout

CPU = torch.device("cpu")
CASES = [  # dims, window, shift, heads, E, pad
    ((4, 4, 4), (2, 2, 2), (1, 1, 1), 2, 4, False),
    ((5, 6, 7), (3, 2, 4), (1, 1, 2), 1, 12, True),
    ((3, 4, 5), (3, 2, 3), (1, 1, 2), 2, 5, False),
    ((2, 5, 5), (3, 3, 3), (1, 1, 1), 3, 32, True),
    ((1, 1, 1), (3, 3, 3), (1, 1, 1), 2, 8, False),
]


def inputs(dims, window, heads, size, pad, rng, dtype=torch.float64, batch=2):
    rows = (2 * window[0] - 1) * (2 * window[1] - 1) * (2 * window[2] - 1)
    qkv = torch.randn(batch, *dims, 3 * heads * size, generator=rng, dtype=torch.float64).to(dtype)
    table = torch.randn(rows, heads, generator=rng, dtype=torch.float64).to(torch.promote_types(dtype, torch.float32))
    empty = torch.randn(3 * heads * size, generator=rng, dtype=torch.float64).to(dtype) if pad else None
    return qkv, table, empty


def loop(qkv, table, pad, heads, window, shift):
    """One window, one query at a time; differentiable. A place beyond the border is a key only if `pad` says what."""
    batch, *dims, _ = qkv.shape
    layout = window_layout(tuple(dims), window, shift, CPU)
    bias = relative_position_bias(table, layout.window, window)
    tokens = qkv.flatten(1, 3).unflatten(-1, (3, heads, -1))
    empty = None if pad is None else pad.view(3, heads, -1)
    results = {}
    for b in range(batch):
        for g, places in enumerate(layout.index.tolist()):
            for i, place in enumerate(places):
                if place < 0:
                    continue
                seen = [
                    j
                    for j, other in enumerate(places)
                    if (other >= 0 or pad is not None)
                    and (layout.labels is None or layout.labels[g, i] == layout.labels[g, j])
                ]
                rows = [tokens[b, places[j]] if places[j] >= 0 else empty for j in seen]
                k, v = torch.stack([r[1] for r in rows]), torch.stack([r[2] for r in rows])  # (keys, heads, E)
                scores = (tokens[b, place, 0] * k).sum(-1) * k.shape[-1] ** -0.5 + bias[:, i, seen].T
                results[b, place] = (scores.softmax(0)[..., None] * v).sum(0).flatten()
    count = len(results) // batch
    rows = [results[b, t] for b in range(batch) for t in range(count)]
    return torch.stack(rows).view(batch, *dims, -1)


def run(function, tensors, grad):
    leaves = [None if x is None else x.detach().clone().requires_grad_() for x in tensors]
    out = function(*leaves)
    out.backward(grad.to(out.dtype))
    return [out.detach(), *(x.grad for x in leaves if x is not None)]


@pytest.mark.parametrize("impl", ["blocked", "reference"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_are_those_of_a_plain_loop(case, impl, rng, close):
    dims, window, shift, heads, size, pad = case
    tensors = inputs(dims, window, heads, size, pad, rng)
    grad = torch.randn(2, *dims, heads * size, generator=rng, dtype=torch.float64)
    exact = run(lambda x, t, p: loop(x, t, p, heads, window, shift), tensors, grad)

    def ours(x, t, p):
        return shifted_window_attention(x, num_heads=heads, window=window, shift=shift, table=t, pad=p, impl=impl)

    for made, true in zip(run(ours, tensors, grad), exact, strict=True):
        close(made, torch.zeros_like(made) if true is None else true)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_stays_close_to_fp64(dtype, rng, close):
    dims, window, shift, heads, size, pad = CASES[1]
    tensors = inputs(dims, window, heads, size, pad, rng, dtype)
    grad = torch.randn(2, *dims, heads * size, generator=rng).to(dtype)

    def ours(x, t, p):
        return shifted_window_attention(x, num_heads=heads, window=window, shift=shift, table=t, pad=p)

    exact = run(ours, [x.double() for x in tensors], grad.double())
    for made, true in zip(run(ours, tensors, grad), exact, strict=True):
        close(made, true, dtype)


def test_blocks_of_any_size_give_the_same(monkeypatch, rng, close):
    dims, window, shift, heads, size, pad = CASES[1]
    tensors = inputs(dims, window, heads, size, pad, rng)
    grad = torch.randn(2, *dims, heads * size, generator=rng, dtype=torch.float64)

    def ours(x, t, p):
        return shifted_window_attention(x, num_heads=heads, window=window, shift=shift, table=t, pad=p)

    whole = run(ours, tensors, grad)
    monkeypatch.setattr("mm.kernels.window_attention.BLOCK_BYTES", {"cpu": 1, "cuda": 1})
    for made, true in zip(run(ours, tensors, grad), whole, strict=True):
        close(made, true)


def test_windows_cut_out_before_agree_with_the_volume(rng, close):
    dims, window, shift, heads, size = (4, 4, 6), (2, 2, 3), (1, 1, 1), 2, 6
    qkv, table, _ = inputs(dims, window, heads, size, False, rng)
    layout = window_layout(dims, window, shift, CPU)
    cut = qkv.flatten(1, 3)[:, layout.index.long()].unflatten(-1, (3, heads, size)).flatten(0, 1)  # (M, n, 3, h, E)
    q, k, v = cut.permute(2, 0, 3, 1, 4)
    made = window_attention_3d(q, k, v, window=window, table=table, labels=layout.labels)
    volume = shifted_window_attention(qkv, num_heads=heads, window=window, shift=shift, table=table)
    cut = volume.flatten(1, 3)[:, layout.index.long()].unflatten(-1, (heads, size)).flatten(0, 1).transpose(1, 2)
    close(made, cut)


def test_flat_window_equals_timm_two_dimensional_attention(rng, close):
    swin = pytest.importorskip("timm.models.swin_transformer")
    theirs = swin.WindowAttention(16, num_heads=2, window_size=4)
    torch.nn.init.normal_(theirs.relative_position_bias_table, generator=rng)
    x = torch.randn(3, 16, 16, generator=rng)
    q, k, v = theirs.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
    ours = window_attention_3d(q, k, v, window=(1, 4, 4), table=theirs.relative_position_bias_table)
    close(theirs.proj(ours.transpose(1, 2).flatten(2)), theirs(x))


def operands(rng, dtype=torch.float64, grad=True):
    dims, window, heads, size = (1, 2, 3), (1, 2, 2), 1, 2
    layout = window_layout(dims, window, (0, 0, 1), CPU)  # two windows of four places, two of them beyond the border
    tokens = torch.randn(1, 6, 3, heads, size, generator=rng, dtype=dtype).requires_grad_(grad)
    table = torch.randn(9, heads, generator=rng, dtype=dtype).requires_grad_(grad)
    pad = torch.randn(3, heads, size, generator=rng, dtype=dtype).requires_grad_(grad)
    return tokens, table, pair_index(layout.window, window, False, CPU), layout.index, layout.labels, pad, 0.7, False


def test_gradcheck(rng):
    tokens, table, pairs, index, labels, pad, *rest = operands(rng)

    def function(tokens, table, pad):
        return window_attention_op(tokens, table, pairs, index, labels, pad, *rest)[0]

    torch.autograd.gradcheck(function, (tokens, table, pad))
    bias = torch.randn(1, 4, 4, generator=rng, dtype=torch.float64).requires_grad_()
    torch.autograd.gradcheck(lambda b: window_attention_op(tokens, b, None, index, labels, pad, *rest)[0], (bias,))


def test_operators_keep_their_contract(rng):
    arguments = operands(rng, torch.float32)
    torch.library.opcheck(window_attention_op, arguments)
    plain = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments]
    out, lse = window_attention_op(*plain)
    backward = (torch.ones_like(out), *plain[:6], out, lse, *plain[6:], True)
    torch.library.opcheck(window_attention_backward_op, backward)


def test_compiles_without_graph_breaks(rng, close):
    dims, window, shift, heads, size, _ = CASES[0]
    qkv, table, _ = inputs(dims, window, heads, size, False, rng, torch.float32)

    def function(x, t):
        return shifted_window_attention(x * 2, num_heads=heads, window=window, shift=shift, table=t) + 1

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    grad = torch.randn(2, *dims, heads * size, generator=rng)
    for made, true in zip(run(compiled, (qkv, table), grad), run(function, (qkv, table), grad), strict=True):
        close(made, true)


def test_memory_does_not_hold_the_scores_of_all_windows(monkeypatch):
    monkeypatch.setattr("mm.kernels.window_attention.BLOCK_BYTES", {"cpu": 1, "cuda": 1})  # one window at a time
    heads, size, window = 2, 8, (6, 6, 6)
    table = torch.randn(11**3, heads, requires_grad=True)

    def peak(impl, depth):
        qkv = torch.randn(1, depth, 12, 12, 3 * heads * size, requires_grad=True)

        def call():
            out = shifted_window_attention(qkv, num_heads=heads, window=window, shift=(3, 3, 3), table=table, impl=impl)
            torch.autograd.grad(out.sum(), (qkv, table))

        call()  # layout tables are made once
        return peak_bytes(call)

    grown = peak("blocked", 24) - peak("blocked", 12)
    scores = 12**3 * heads * 216 * 4  # what one [windows, heads, n, n] tensor would add
    assert grown < 0.5 * scores  # tokens and gradients alone; the reference adds several such tensors
    assert peak("reference", 24) - peak("reference", 12) > 2 * scores


def test_flops_are_counted():
    from torch.utils.flop_counter import FlopCounterMode

    qkv = torch.randn(1, 4, 4, 4, 3 * 8, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        shifted_window_attention(qkv, num_heads=2, window=(2, 2, 2)).sum().backward()
    pairs = 8 * 2 * 8 * 8 * 4  # windows, heads, n, n, E
    assert counter.get_total_flops() == 4 * pairs + 10 * pairs


def test_errors_say_what_is_wrong():
    qkv = torch.randn(1, 4, 4, 4, 24)
    with pytest.raises(ValueError, match="num_heads=5 dividing C"):
        shifted_window_attention(qkv, num_heads=5, window=(2, 2, 2))
    with pytest.raises(ValueError, match="not both"):
        shifted_window_attention(
            qkv, num_heads=2, window=(2, 2, 2), table=torch.zeros(27, 2), bias=torch.zeros(2, 8, 8)
        )
    with pytest.raises(ValueError, match="3 columns, found 2 heads"):
        shifted_window_attention(qkv, num_heads=2, window=(2, 2, 2), table=torch.zeros(27, 3))
    with pytest.raises(ValueError, match="impl='triton' cannot run"):
        shifted_window_attention(qkv, num_heads=2, window=(2, 2, 2), impl="triton")
    with pytest.raises(ValueError, match="G dividing"):
        x = torch.randn(3, 1, 8, 4)
        window_attention_3d(x, x, x, window=(2, 2, 2), labels=torch.zeros(2, 8))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", [*CASES[:4], ((9, 9, 8), (7, 7, 7), (3, 3, 3), 4, 12, True)], ids=str)
def test_triton_kernels_on_a_gpu(case, dtype, rng, close):
    dims, window, shift, heads, size, pad = case
    tensors = [x if x is None else x.cuda() for x in inputs(dims, window, heads, size, pad, rng, dtype)]
    grad = torch.randn(2, *dims, heads * size, generator=rng).to("cuda", dtype)

    def function(impl):
        return lambda x, t, p: shifted_window_attention(
            x, num_heads=heads, window=window, shift=shift, table=t, pad=p, impl=impl
        )

    exact = run(function("reference"), [x if x is None else x.double() for x in tensors], grad.double())
    first, again = (run(function("triton"), tensors, grad) for _ in range(2))
    for made, repeated, true in zip(first, again, exact, strict=True):
        if true is not None:
            close(made, true, dtype)
            assert torch.equal(made, repeated)  # no atomics, no races


def test_the_decision_is_pure_and_explained():
    from mm.kernels.dispatch import Situation

    assert DISPATCH.decide(Situation(device="cpu")).impl == "blocked"
    fast = Situation(device="cuda", capability=(9, 0), triton=True, head_dim=32, dtype=torch.bfloat16)
    assert DISPATCH.decide(fast, "triton").impl == "triton"
    assert DISPATCH.decide(fast).impl == "triton"
    wide = Situation(device="cuda", capability=(9, 0), triton=True, head_dim=256, dtype=torch.bfloat16)
    assert "above 128" in DISPATCH.decide(wide).reason
