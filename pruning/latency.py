"""Prompt and decoding time of a pruned model against the same model unpruned, both with fused attention.

The model is random LLaVA-1.5: of full size on a GPU, a tenth as wide on a CPU. Random weights answer nothing; time and
memory do not depend on that, and the counts of the adaptive schedule are fixed to those of the published entropies.
Slower results are rows like all others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mm.metrics.latency import measure
from mm.metrics.memory import measure_memory
from mm.pruning.base import Pruner
from mm.pruning.flops import ENTROPY_RATIO
from mm.pruning.flowcut import FlowCut
from mm.pruning.methods import make_pruner
from mm.pruning.schedule import constant_ratio_counts, cut_layers
from mm.pruning.towers import open_tower

TARGETS = (192, 64)
"""Visual tokens of 576."""
PEERS = ("visionzip", "fastv", "uniform")
"""Timed at the smallest target beside FlowCut: the cheapest choices in the encoder and in the language model."""
DECODED = 16
"""New tokens of the decoding row."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of the random model."""

    vision_width: int = 1024
    """Channels of the encoder."""
    vision_depth: int = 24
    """Its blocks."""
    width: int = 4096
    """Channels of the language model."""
    depth: int = 32
    """Its blocks."""
    feed_forward: int = 11008
    """Its inner channels."""
    text_tokens: int = 60
    """Text in the prompt."""


FULL = Shape()
"""LLaVA-1.5-7B."""
SCALED = Shape(vision_width=128, vision_depth=24, width=384, depth=8, feed_forward=1024)
"""The same tokens through narrower blocks, for a CPU."""
IMAGE_TOKEN = 5


def random_llava(shape: Shape, device: str, dtype: torch.dtype) -> nn.Module:
    """A random `LlavaForConditionalGeneration` with 576 visual tokens and SDPA attention."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=shape.vision_width,
        intermediate_size=4 * shape.vision_width,
        num_hidden_layers=shape.vision_depth,
        num_attention_heads=shape.vision_width // 64,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=32000,
        hidden_size=shape.width,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.width // 128,
        num_key_value_heads=shape.width // 128,
        max_position_embeddings=4096,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration._from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.generation_config.eos_token_id = None  # random answers must not end early
    return model.eval()


def example(shape: Shape, batch: int, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """A prompt with one picture per row."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(10, 30000, (batch, shape.text_tokens), generator=generator)
    ids = torch.cat([text[:, :20], torch.full((batch, 576), IMAGE_TOKEN), text[:, 20:]], dim=1).to(device)
    pixels = torch.randn(batch, 3, 336, 336, generator=generator).to(device, dtype)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def fixed_flowcut(target: int, shape: Shape) -> FlowCut:
    """FlowCut whose counts are those of a constant entropy ratio, rounded up to multiples of 8."""
    cuts = cut_layers(shape.vision_depth - 3, 2)
    counts = [-(-count // 8) * 8 for count in constant_ratio_counts(576, target, cuts, ENTROPY_RATIO)]
    return FlowCut(target_tokens=target, schedule="fixed", counts=(*counts[:-1], target))


@torch.inference_mode()
def rows(
    *, device: str = "cpu", repeats: int = 10, shape: Shape | None = None, batches: tuple[int, ...] = ()
) -> list[dict[str, Any]]:
    """Rows of `mm bench latency --system flowcut`.

    Args:
        device: Where to run; "cuda" takes the full size in bfloat16.
        repeats: Samples per candidate.
        shape: Sizes; by default `FULL` on a GPU, `SCALED` elsewhere.
        batches: Prompts at once; by default 1 and 16 on a GPU, 1 elsewhere, where 16 take many minutes.

    Returns:
        Rows {setting, batch, method, visual_tokens, prefill_ms, prefill_speedup, tokens_per_s, peak_mb}: time to the
        first token with the encoder, decoding speed behind it (not a number where noise is larger), memory beyond the
        weights. The last rows hold the share of FlowCut's scores in an encoder block's time, `scores_share`; on a GPU
        also for the compiled scores.
    """
    full = torch.device(device).type == "cuda"
    shape = shape or (FULL if full else SCALED)
    dtype = torch.bfloat16 if full else torch.float32
    batches = batches or ((1, 16) if full else (1,))
    model: Any = random_llava(shape, device, dtype)
    name = f"LLaVA shape {shape.width}x{shape.depth}, {str(dtype).removeprefix('torch.')}, {device}"
    table = []
    for batch in batches:
        inputs = example(shape, batch, device, dtype)
        table += _batch_rows(model, inputs, shape, name, repeats, device)
    for batch in batches:
        table += scoring_share(model, example(shape, batch, device, dtype)["pixel_values"], repeats, device)
    return table


def _pruners(shape: Shape) -> dict[str, tuple[Pruner | None, int]]:
    found: dict[str, tuple[Pruner | None, int]] = {"unpruned, SDPA": (None, 576)}
    for target in TARGETS:
        found[f"flowcut {target} (fixed schedule)"] = (fixed_flowcut(target, shape), target)
        found[f"flowcut {target} (adaptive)"] = (FlowCut(target_tokens=target), target)
    for name in PEERS:
        found[f"{name} {TARGETS[-1]}"] = (make_pruner(name, TARGETS[-1]), TARGETS[-1])
    return found


def _batch_rows(
    model: Any, inputs: dict[str, Tensor], shape: Shape, name: str, repeats: int, device: str
) -> list[dict[str, Any]]:
    pruners = _pruners(shape)
    prefill = {label: _call(model, inputs, pruner, 1) for label, (pruner, _) in pruners.items()}
    answer = {label: _call(model, inputs, pruner, 1 + DECODED) for label, (pruner, _) in pruners.items()}
    first = {row.candidate: row for row in measure(prefill, repeats=repeats, warmup=2, device=device)}
    whole = {row.candidate: row for row in measure(answer, repeats=max(2, repeats // 3), warmup=1, device=device)}
    base = first["unpruned, SDPA"].median_ms
    table = []
    for label, (_, tokens) in pruners.items():
        decoding_s = (whole[label].median_ms - first[label].median_ms) / 1e3
        speed = DECODED * len(inputs["input_ids"]) / decoding_s if decoding_s > 0 else float("nan")  # lost in noise
        table.append(
            {
                "setting": name,
                "batch": len(inputs["input_ids"]),
                "method": label,
                "visual_tokens": tokens,
                "prefill_ms": first[label].median_ms,
                "prefill_speedup": base / first[label].median_ms,
                "tokens_per_s": speed,
                "peak_mb": measure_memory(prefill[label], device=device).peak_bytes / 1e6,
            }
        )
    return table


def _call(model: Any, inputs: dict[str, Tensor], pruner: Pruner | None, new: int) -> Callable[[], Any]:
    """Generation of `new` tokens; attaching is part of the time."""

    def plain() -> Any:
        return model.generate(**inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)

    def pruned() -> Any:
        assert pruner is not None
        with pruner.attach(model):
            return plain()

    return plain if pruner is None else pruned


def scoring_share(model: Any, pixel_values: Tensor, repeats: int, device: str) -> list[dict[str, Any]]:
    """Time of the scores of one block relative to that block, both unpruned."""
    from mm.pruning.scores import Heads, ScoreConfig, information_flow

    tower = open_tower(model.model.vision_tower, -2)
    stream = tower.start(pixel_values)
    _, heads = tower.block(0, stream)

    def flow(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return information_flow(Heads(query, key, value, heads.scale), tower.num_prefix, ScoreConfig()).score

    kinds = {"scores": flow}
    if torch.device(device).type == "cuda":
        kinds["compiled scores"] = torch.compile(flow)
    timed: dict[str, Callable[[], Any]] = {"block": lambda: tower.block(0, stream)}
    timed |= {name: partial(run, heads.query, heads.key, heads.value) for name, run in kinds.items()}
    found = {row.candidate: row.median_ms for row in measure(timed, repeats=repeats, device=device)}
    return [
        {
            "setting": f"{name} of one encoder block, width {model.config.vision_config.hidden_size}, {device}",
            "batch": len(pixel_values),
            "method": "flowcut, unpruned",
            "visual_tokens": 576,
            "block_ms": found["block"],
            "scores_ms": found[name],
            "scores_share": found[name] / found["block"],
        }
        for name in kinds
    ]
