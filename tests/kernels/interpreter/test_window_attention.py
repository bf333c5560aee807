"""Triton window attention through the interpreter, fp32 and fp16, tiny odd shapes, every output poisoned."""

import pytest
import torch

from mm.kernels.window_attention import shifted_window_attention

CASES = [  # dims, window, shift, heads, E, pad, table or bias
    ((3, 2, 2), (2, 2, 2), (1, 0, 1), 2, 12, True, True),
    ((2, 5, 7), (3, 5, 7), (1, 1, 1), 1, 20, False, False),  # n = 70: two tiles
    ((1, 1, 1), (2, 2, 2), (0, 0, 0), 1, 4, False, True),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_as_reference(case, dtype, rng, close):
    dims, window, shift, heads, size, pad, by_table = case
    if dtype == torch.float16 and case is not CASES[0]:
        pytest.skip("one half-precision case is enough at interpreter speed")
    rows = (2 * window[0] - 1) * (2 * window[1] - 1) * (2 * window[2] - 1)
    n = dims[0] * dims[1] * dims[2]
    shape = (rows, heads) if by_table else (heads, n, n)
    made = [torch.randn(2, *dims, 3 * heads * size, generator=rng).to(dtype), torch.randn(shape, generator=rng)]
    made += [torch.randn(3 * heads * size, generator=rng).to(dtype)] if pad else []
    grad = torch.randn(2, *dims, heads * size, generator=rng).to(dtype)

    def both_ways(impl, wide):
        leaves = [(x.double() if wide else x).clone().requires_grad_() for x in made]
        out = shifted_window_attention(
            leaves[0],
            num_heads=heads,
            window=window,
            shift=shift,
            pad=leaves[2] if pad else None,
            impl=impl,
            **{"table" if by_table else "bias": leaves[1]},
        )
        out.backward(grad.to(out.dtype))
        return [out.detach(), *(x.grad for x in leaves)]

    for ours, exact in zip(both_ways("triton", False), both_ways("reference", True), strict=True):
        close(ours, exact, dtype)
