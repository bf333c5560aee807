"""The modulated norm at training and inference sizes of a 7-billion-parameter language model."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mm.kernels.bench import Case, Contest, Target
from mm.kernels.norm import modulated_norm

BANDWIDTH = {"cuda": (Target(kind="bandwidth", limit=0.8),)}


def cases() -> list[Case]:
    """Rows x width, bfloat16 on a GPU."""
    return [
        _case("forward", 512, 3584, _forward, ("cpu",), {}),
        _case("forward", 400, 3584, _forward, ("cuda",), {}),
        _case("forward", 65536, 3584, _forward, ("cuda",), BANDWIDTH),
        _case("forward and backward", 65536, 3584, _both, ("cuda",), BANDWIDTH),
        _case("forward and backward", 32768, 4096, _both, ("cuda",), BANDWIDTH),
        _case("forward and backward, weight frozen", 65536, 3584, _frozen, ("cuda",), BANDWIDTH),
    ]


def _case(what: str, rows: int, width: int, build, devices: tuple[str, ...], targets: dict) -> Case:
    shape = f"{what}, {rows} rows x {width}"
    return Case(
        kernel="modulated_norm", shape=shape, build=partial(build, rows, width), devices=devices, targets=targets
    )


def _chain(x: Tensor, residual: Tensor, weight: Tensor, dscale: Tensor, dshift: Tensor) -> tuple[Tensor, Tensor]:
    """What a user writes: residual sum, the model's norm, the change."""
    total = x + residual
    wide = total.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    y = weight * normed.to(x.dtype)
    return (y.float() + dscale.float() * normed + dshift.float()).to(y.dtype), total


def _draw(rows: int, width: int, device: str) -> tuple[Tensor, ...]:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(0)
    shapes = [(rows, width), (rows, width), (width,), (rows, width), (rows, width)]
    return tuple(torch.randn(shape, device=device, generator=generator).to(dtype) for shape in shapes)


def _ours(x: Tensor, residual: Tensor, weight: Tensor, dscale: Tensor, dshift: Tensor) -> tuple[Tensor, Tensor]:
    y, total = modulated_norm(x, weight, None, dscale, dshift, residual=residual)
    return y, total


def _forward(rows: int, width: int, device: str) -> Contest:
    tensors = _draw(rows, width, device)
    peers = {"eager": lambda: _chain(*tensors)}
    if device == "cuda":
        compiled = torch.compile(_chain)
        peers["torch.compile"] = lambda: compiled(*tensors)
    moved = 6.0 * rows * width * tensors[0].element_size()  # reads x, residual, two changes; writes y and the sum
    return Contest(ours=lambda: _ours(*tensors), peers=peers, bytes=moved, flops=8.0 * rows * width)


def _frozen(rows: int, width: int, device: str) -> Contest:
    """LaVi's training: the language model's weight stands still, the changes learn."""
    return _both(rows, width, device, frozen=True)


def _both(rows: int, width: int, device: str, frozen: bool = False) -> Contest:
    tensors = _draw(rows, width, device)
    wanted = tuple(t.requires_grad_() for t in tensors if not (frozen and t.ndim == 1))
    dy, dtotal = (torch.randn_like(tensors[0]) for _ in range(2))

    def run(function):
        def step() -> tuple[Tensor, ...]:
            return torch.autograd.grad(function(*tensors), wanted, (dy, dtotal))

        return step

    peers = {"eager": run(_chain)}
    if device == "cuda":
        peers["torch.compile"] = run(torch.compile(_chain))
    # Backward reads dy, the stream's gradient, the stream and dscale, and writes two gradients.
    moved = 12.0 * rows * width * tensors[0].element_size()
    return Contest(ours=run(_ours), peers=peers, bytes=moved, flops=20.0 * rows * width)
