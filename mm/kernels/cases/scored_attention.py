"""Attention with statistics at the sizes of CLIP ViT-L/336 and of the last row of a language model."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from mm.kernels.bench import Case, Contest, Target
from mm.kernels.scored_attention import attention_with_scores

FLASH = "FlashAttention alone"
ROWS = {
    "cpu": (Target(kind="overhead", limit=0.03, peer="attention alone"),),
    "cuda": (Target(kind="overhead", limit=0.02, peer=FLASH),),
}
COLUMNS = {
    "cpu": (Target(kind="overhead", limit=0.6, peer="attention alone"),),
    "cuda": (Target(kind="overhead", limit=0.35, peer=FLASH),),
}


def cases() -> list[Case]:
    """Batch x heads x tokens x head dim; one sample on CPU, 64 in bfloat16 on a GPU."""
    return [
        _case("class row", {"rows": "cls"}, 16, 16, 577, 64, ROWS),
        _case("column sums", {"columns": True}, 16, 16, 577, 64, COLUMNS),
        _case("row, sums, entropy", {"rows": "cls", "columns": True, "entropy": True}, 16, 16, 577, 64, {}),
        _case("class row", {"rows": "cls"}, 16, 16, 729, 72, ROWS, devices=("cuda",)),
        _case("last row, causal, 4 key heads", {"rows": "last", "is_causal": True}, 28, 4, 2940, 128, {}, ("cuda",)),
    ]


def _case(
    what: str,
    options: dict[str, Any],
    heads: int,
    kv_heads: int,
    tokens: int,
    width: int,
    targets: dict,
    devices: tuple[str, ...] = ("cpu", "cuda"),
) -> Case:
    return Case(
        kernel="attention_with_scores",
        shape=f"{what}: {heads} heads x {width}, {tokens} tokens",
        build=partial(_contest, options, heads, kv_heads, tokens, width),
        devices=devices,
        targets=targets,
    )


def _contest(options: dict[str, Any], heads: int, kv_heads: int, tokens: int, width: int, device: str) -> Contest:
    batch, dtype = (64 if width == 64 else 8, torch.bfloat16) if device == "cuda" else (1, torch.float32)
    generator = torch.Generator(device).manual_seed(0)

    def draw(count: int) -> torch.Tensor:  # (B, N, H, D) in memory, as attention layers have it
        x = torch.randn(batch, tokens, count, width, device=device, generator=generator)
        return x.to(dtype).transpose(1, 2)

    q, k, v = draw(heads), draw(kv_heads), draw(kv_heads)
    causal = options.get("is_causal", False)

    def alone() -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=heads != kv_heads)

    def eager() -> tuple[torch.Tensor, ...]:
        key, value = (t.repeat_interleave(heads // kv_heads, 1) for t in (k, v))
        z = (q @ key.transpose(-1, -2)).float() * width**-0.5
        p = (z.masked_fill(~z.new_ones(tokens, tokens, dtype=torch.bool).tril(), -torch.inf) if causal else z).softmax(
            -1
        )
        found = [p.to(dtype) @ value]
        if "rows" in options:
            found.append(p[:, :, 0 if options["rows"] == "cls" else -1].mean(1))
        if "columns" in options:
            found.append(p.sum(2).mean(1))
        if "entropy" in options:
            found.append(torch.special.entr(p).sum(-1).mean(1))
        return tuple(found)

    def flash() -> torch.Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return alone()

    size = torch.finfo(dtype).bits // 8
    return Contest(
        ours=lambda: attention_with_scores(q, k, v, **options),
        peers={"attention alone": alone, **({FLASH: flash} if device == "cuda" else {}), "eager, whole matrix": eager},
        bytes=float(size * batch * tokens * width * 2 * (heads + kv_heads)),
        flops=4.0 * batch * heads * tokens**2 * width / (2 if causal else 1),
        matmul="bfloat16" if device == "cuda" else "float32",
    )
