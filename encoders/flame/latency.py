"""Measured time of the text tower: one masked pass, the fork of the prefix, and one pass per facet.

All candidates run on one random language model and the same tokens, and take turns.
Dims: n tokens of a caption, K = 7 facets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mm.backbone import LanguageBackbone
from mm.data.tokenizer import tiny_tokenizer
from mm.encoders.flame.facets import FacetBatch, FacetRow, collate
from mm.encoders.flame.flops import FACET_TOKENS, PREFIX_TOKENS, lengths
from mm.encoders.flame.text import FacetTextEncoder
from mm.metrics.latency import measure
from mm.metrics.shapes import DecoderShape

CAPTIONS = (16, 64, 200)


def batches(caption: int, batch: int, vocab: int = 500) -> tuple[FacetBatch, list[FacetBatch]]:
    """Random tokens in the layout of the published templates: all facets together, and each alone."""
    prefix, generator = PREFIX_TOKENS + caption, torch.Generator().manual_seed(0)
    facets = [0] * prefix + [k for k, count in enumerate(FACET_TOKENS, 1) for _ in range(count)]
    rows = [
        FacetRow(torch.randint(3, vocab, (len(facets),), generator=generator).tolist(), facets) for _ in range(batch)
    ]
    return collate(rows, 0), [collate([_alone(row, k) for row in rows], 0) for k in range(1, len(FACET_TOKENS) + 1)]


def _alone(row: FacetRow, number: int) -> FacetRow:
    keep = [i for i, k in enumerate(row.facet_ids) if k in (0, number)]
    return FacetRow([row.input_ids[i] for i in keep], [min(row.facet_ids[i], 1) for i in keep])


def candidates(
    captions: Sequence[int], *, width: int, depth: int, batch: int, device: str
) -> tuple[dict[str, Callable[[], Any]], DecoderShape]:
    """Functions "one pass n", "fork n" and "seven passes n" over one random model, and its shape."""
    heads, layer = width // 64, depth - 1
    sizes = {"width": width, "depth": depth, "num_heads": heads, "num_kv_heads": heads, "feed_forward": 3 * width}
    backbone = LanguageBackbone.tiny("llama", vocab_size=500, max_positions=4096, std=0.02, **sizes)
    masked = FacetTextEncoder(backbone, tiny_tokenizer(), layer=layer).to(device)
    forked = FacetTextEncoder(backbone, tiny_tokenizer(), layer=layer, sharing="fork").to(device)

    def apart(parts: list[FacetBatch]) -> Tensor:
        return torch.cat([masked.embed(part, 1) for part in parts], dim=1)

    functions: dict[str, Callable[[], Any]] = {}
    for caption in captions:
        together, parts = batches(caption, batch)
        functions[f"seven passes {caption}"] = partial(apart, parts)
        functions[f"one pass {caption}"] = partial(masked.embed, together, len(FACET_TOKENS))
        functions[f"fork {caption}"] = partial(forked.embed, together, len(FACET_TOKENS))
    shape = DecoderShape(
        layers=layer, width=width, heads=heads, kv_heads=heads, head_width=64, feed_forward=3 * width, vocab=500
    )
    return functions, shape


@torch.inference_mode()
def rows(
    *, device: str = "cpu", repeats: int = 10, width: int = 256, depth: int = 5, batch: int = 4
) -> list[dict[str, Any]]:
    """One row per caption length, all measured in one run; the share of operations stands beside that of time.

    Args:
        device: Where to run.
        repeats: Samples per candidate.
        width: Channels of the language model, a multiple of 64.
        depth: Its blocks; all but the last run.
        batch: Captions per pass.
    """
    functions, shape = candidates(CAPTIONS, width=width, depth=depth, batch=batch, device=device)
    median = {row.candidate: row.median_ms for row in measure(functions, repeats=repeats, warmup=2, device=device)}
    found = []
    for caption in CAPTIONS:
        together, apart = lengths(caption)
        flops = shape.prefill_flops(together, causal=False, logits="none")
        baseline = sum(shape.prefill_flops(length, causal=False, logits="none") for length in apart)
        one, fork, seven = (median[f"{name} {caption}"] for name in ("one pass", "fork", "seven passes"))
        found.append(
            {
                "setting": f"Llama {width}x{depth}, {batch} captions of {caption} tokens, 7 facets",
                "one_pass_ms": one,
                "fork_ms": fork,
                "seven_passes_ms": seven,
                "time_share": one / seven,
                "fork_time_share": fork / seven,
                "flop_share": flops / baseline,
            }
        )
    return found
