"""Cost of the text tower: all facets in one pass against one pass per facet.

    one pass      F(p + n + r_1 + ... + r_K)              K passes   sum_k F(p + n + r_k)
    F(T) = 2 P_lin T + 4 L h T^2     blocks up to the read layer, no head, attention counted in full

Both sides count every pair of a dense attention call, so the quadratic part is against the one pass.
Dims: p tokens of the template around the caption, n tokens of the caption, r_k tokens of facet k, K facets, T length.
Source: token counts of the published templates under the Mistral-Nemo vocabulary; shapes of Mistral-Nemo-Instruct-2407.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mm.metrics.shapes import DecoderShape

MISTRAL_NEMO = DecoderShape(
    layers=40, width=5120, heads=32, kv_heads=8, head_width=128, feed_forward=14336, vocab=131072
)
READ_LAYER = 39
PREFIX_TOKENS = 14
"""Begin token, "Detailed Image description : "" and the bridge behind the caption."""
FACET_TOKENS = (11, 15, 18, 15, 18, 16, 14)
"""The seven published facets."""
CAPTIONS = (16, 64, 200, 1000)


def lengths(caption: int, facets: tuple[int, ...] = FACET_TOKENS) -> tuple[int, list[int]]:
    """Tokens of the one pass, and of each pass of its own."""
    shared = PREFIX_TOKENS + caption
    return shared + sum(facets), [shared + facet for facet in facets]


def rows(captions: tuple[int, ...] = CAPTIONS) -> list[dict[str, Any]]:
    """The comparison for Mistral-Nemo read at block 39, seven facets.

    Returns:
        Per caption length: setting, ours_tflop (one pass), baseline_tflop (seven passes), saving (share of the
        baseline's operations), share (one pass relative to seven), tokens and baseline_tokens.
    """
    shape = replace(MISTRAL_NEMO, layers=READ_LAYER)
    found = []
    for caption in captions:
        together, apart = lengths(caption)
        ours = shape.prefill_flops(together, causal=False, logits="none")
        baseline = sum(shape.prefill_flops(length, causal=False, logits="none") for length in apart)
        found.append(
            {
                "setting": f"Mistral-Nemo to block {READ_LAYER}, 7 facets, caption of {caption} tokens",
                "ours_tflop": ours / 1e12,
                "baseline_tflop": baseline / 1e12,
                "saving": 1.0 - ours / baseline,
                "share": ours / baseline,
                "tokens": together,
                "baseline_tokens": sum(apart),
            }
        )
    return found
