"""Prefill time over the number of visual tokens: LaVi against concatenation on the same random language model.

Both start from the same tower features; the tower itself is the same for both and left out. LaVi's time contains its
projector and visual keys and values, concatenation's its projector.
Dims: M visual tokens, N text tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mm.backbone import LanguageBackbone
from mm.encoders.lavi.attach import attach
from mm.encoders.lavi.config import LaviConfig
from mm.metrics.latency import measure
from mm.vlm import build_projector

VISUAL_TOKENS = (64, 256, 576, 1024)
VISION_WIDTH = 384


def candidates(
    visual_tokens: Sequence[int], *, width: int, depth: int, text_tokens: int, device: str
) -> dict[str, Callable[[], Tensor]]:
    """Prefill functions "lavi M" and "concatenation M" over one random model, batch 1."""
    heads = width // 64
    sizes = {"width": width, "depth": depth, "num_heads": heads, "num_kv_heads": heads, "feed_forward": 3 * width}
    plain = LanguageBackbone.tiny("llama", std=0.02, max_positions=4096, **sizes).to(device).eval()
    seeing = LanguageBackbone.tiny("llama", std=0.02, max_positions=4096, **sizes).to(device).eval()
    config = LaviConfig(vision_width=VISION_WIDTH, width=width // 4, num_heads=width // 64, num_kv_heads=width // 256)
    lavi = attach(seeing.model, config).to(device).eval()
    projector = build_projector("mlp2x_gelu", VISION_WIDTH, width).to(device)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 50, (1, text_tokens), generator=generator).to(device)

    def concatenate(features: Tensor) -> Tensor:
        embedded = torch.cat([projector(features), plain.embed(ids)], dim=1)
        return plain(inputs_embeds=embedded, logits_to_keep=1).logits  # type: ignore[no-any-return]

    def modulate(features: Tensor) -> Tensor:
        return lavi(ids, visual=lavi.encode_vision(features), logits_to_keep=1).logits  # type: ignore[no-any-return]

    functions: dict[str, Callable[[], Tensor]] = {}
    for count in visual_tokens:
        features = torch.randn(1, count, VISION_WIDTH, generator=generator).to(device)
        functions[f"lavi {count}"] = lambda features=features: modulate(features)  # type: ignore[misc]
        functions[f"concatenation {count}"] = lambda features=features: concatenate(features)  # type: ignore[misc]
    return functions


@torch.inference_mode()
def rows(
    *, device: str = "cpu", repeats: int = 30, width: int = 512, depth: int = 8, text_tokens: int = 32
) -> list[dict[str, Any]]:
    """One row per number of visual tokens, all measured in one run.

    Args:
        device: Where to run.
        repeats: Samples per candidate.
        width: Channels of the language model, a multiple of 256.
        depth: Its blocks.
        text_tokens: Length of the prompt (N).

    Returns:
        Rows {setting, visual_tokens, lavi_ms, concatenation_ms, ratio}; the last row holds the slopes in ms per 1,000
        visual tokens (least squares) and their ratio.
    """
    functions = candidates(VISUAL_TOKENS, width=width, depth=depth, text_tokens=text_tokens, device=device)
    median = {row.candidate: row.median_ms for row in measure(functions, repeats=repeats, device=device)}
    setting = f"Llama {width}x{depth}, N={text_tokens}, batch 1, prefill without tower"
    found: list[dict[str, Any]] = [
        {
            "setting": setting,
            "visual_tokens": count,
            "lavi_ms": median[f"lavi {count}"],
            "concatenation_ms": median[f"concatenation {count}"],
            "ratio": median[f"concatenation {count}"] / median[f"lavi {count}"],
        }
        for count in VISUAL_TOKENS
    ]
    lavi, concatenation = (slope([row[name] for row in found]) for name in ("lavi_ms", "concatenation_ms"))
    return [
        *found,
        {
            "setting": "slope, ms per 1,000 visual tokens",
            "lavi_ms": lavi,
            "concatenation_ms": concatenation,
            "ratio": concatenation / lavi,
        },
    ]


def slope(times_ms: Sequence[float]) -> float:
    """Least-squares slope over `VISUAL_TOKENS`, ms per 1,000 tokens."""
    x = torch.tensor(VISUAL_TOKENS, dtype=torch.float64) / 1000
    y = torch.tensor(times_ms, dtype=torch.float64)
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum())
