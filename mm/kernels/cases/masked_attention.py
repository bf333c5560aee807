"""Contests of attention with a shared prefix: facets in one pass against one pass per facet."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mm.kernels.bench import Case, Contest, Target
from mm.kernels.masked_attention import attention
from mm.kernels.masks import Facets

SPANS = (11, 15, 18, 15, 18, 16, 14)
"""Tokens of FLAME's seven facet prompts."""
SIZES = {"cpu": (2, 8, 8, 64), "cuda": (32, 32, 8, 128)}
"""Batch, heads, key heads, head size: a small model on the CPU, the published one on a GPU."""


def cases() -> list[Case]:
    """Attention alone, and a whole decoder layer, where shared tokens save most of the work."""
    return [
        Case(kernel="attention", shape="7 facets, prefix 78, attention alone", build=partial(_alone, 78)),
        Case(kernel="attention", shape="7 facets, prefix 214, attention alone", build=partial(_alone, 214)),
        Case(
            kernel="attention",
            shape="7 facets, prefix 78, layer",
            build=_layer,
            targets={"cpu": (Target(kind="speedup", limit=3.0, peer="7 passes"),)},
        ),
    ]


def _dtype(device: str) -> torch.dtype:
    return torch.bfloat16 if device == "cuda" else torch.float32


def _pairs(prefix: int) -> int:
    """Allowed (query, key) pairs."""
    return prefix * (prefix + 1) // 2 + sum(n * prefix + n * (n + 1) // 2 for n in SPANS)


def _passes(x: Tensor, prefix: int) -> Tensor:
    """One sequence per facet: (B, ..., L, C) tokens -> (7 B, ..., prefix + longest, C), padded at the end."""
    longest, start, rows = max(SPANS), prefix, []
    for n in SPANS:
        own = x[..., start : start + n, :]
        rows.append(F.pad(torch.cat([x[..., :prefix, :], own], -2), (0, 0, 0, longest - n)))
        start += n
    return torch.cat(rows)


def _alone(prefix: int, device: str) -> Contest:
    batch, heads, key_heads, size = SIZES[device]
    length, dtype = prefix + sum(SPANS), _dtype(device)
    q = torch.randn(batch, heads, length, size, device=device).to(dtype)
    k, v = (torch.randn(batch, key_heads, length, size, device=device).to(dtype) for _ in range(2))
    qs, ks, vs = (_passes(x, prefix) for x in (q, k, v))
    mask = Facets(prefix, SPANS)
    grouped = heads != key_heads
    peers: dict[str, Callable[[], Tensor]] = {
        "7 passes": lambda: F.scaled_dot_product_attention(qs, ks, vs, is_causal=True, enable_gqa=grouped),
        "SDPA, boolean matrix": lambda: attention(q, k, v, mask=mask, impl="sdpa"),
    }
    if device == "cuda":
        peers["FlexAttention"] = lambda: attention(q, k, v, mask=mask, impl="flex")
        peers["ours, by parts"] = lambda: attention(q, k, v, mask=mask, impl="blocked")
    return Contest(
        ours=lambda: attention(q, k, v, mask=mask),
        peers=peers,
        bytes=2.0 * (q.numel() + k.numel()) * q.element_size(),
        flops=4.0 * batch * heads * size * _pairs(prefix),
        matmul=str(dtype).removeprefix("torch."),
    )


def _layer(device: str) -> Contest:
    """Attention and the linear layers of a decoder block (gated feed-forward of 2.75 times the width), forward."""
    batch, heads, key_heads, size = SIZES[device]
    prefix, dtype, width = 78, _dtype(device), heads * size
    shapes = {"q": width, "k": key_heads * size, "v": key_heads * size, "o": width, "up": 22 * width // 8}
    weights = {name: torch.randn(out, width, device=device).to(dtype) * width**-0.5 for name, out in shapes.items()}
    gate, down = torch.randn_like(weights["up"]) * width**-0.5, weights["up"].mT.contiguous()
    x = torch.randn(batch, prefix + sum(SPANS), width, device=device).to(dtype)
    many = _passes(x, prefix)
    mask = Facets(prefix, SPANS)

    @torch.no_grad()
    def layer(tokens: Tensor, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        q, k, v = (
            rearrange(F.linear(tokens, weights[name]), "b n (h e) -> b h n e", e=size) for name in ("q", "k", "v")
        )
        tokens = tokens + F.linear(rearrange(attend(q, k, v), "b h n e -> b n (h e)"), weights["o"])
        return tokens + F.linear(F.silu(F.linear(tokens, gate)) * F.linear(tokens, weights["up"]), down)

    grouped = heads != key_heads
    peers = {
        "7 passes": lambda: layer(many, partial(F.scaled_dot_product_attention, is_causal=True, enable_gqa=grouped)),
        "SDPA, boolean matrix": lambda: layer(x, partial(attention, mask=mask, impl="sdpa")),
    }
    linear = sum(w.numel() for w in weights.values()) + gate.numel() + down.numel()
    return Contest(
        ours=lambda: layer(x, partial(attention, mask=mask)),
        peers=peers,
        bytes=float(linear + 2 * x.numel()) * x.element_size(),
        flops=2.0 * linear * x.shape[0] * x.shape[1] + 4.0 * batch * width * _pairs(prefix),
        matmul=str(dtype).removeprefix("torch."),
    )
