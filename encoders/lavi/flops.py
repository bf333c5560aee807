"""Cost of LaVi in closed form, and against a model that puts its visual tokens into the sequence.

    concatenation: F_vit * tiles + F_lm(M + N)           LaVi: F_vit * tiles + F_lm(N) + F_cond(M, N)
    F_cond = 2 M (d_v C + C^2) + 4 |ML| M C kv + S (6 N D C + 4 N M C)
    F_vit, F_lm: `mm.metrics.shapes`, causal attention, head on the last token

One multiply-add counts as two operations, the vision encoder is included, prefill only.
Dims: M visual tokens behind pooling, N text tokens, ML modulated blocks, S modulated norms, d_v feature width, kv
channels of the visual keys, C conditioner width, D model width.
Source: derived from public backbone shapes; arXiv:2506.16691 states its saving (94.0 % against LLaVA-OV-7B) without
shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mm.encoders.lavi.config import LaviConfig, modulated_layers
from mm.metrics.shapes import CLIP_L_336, QWEN2_7B, SIGLIP_SO400M_384, VICUNA_7B, DecoderShape, ViTShape


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A vision encoder as a table names it."""

    name: str
    """Shown in tables."""
    shape: ViTShape
    """What runs per tile."""
    patches: int
    """Visual tokens it gives per tile."""


CLIP = Encoder(name="CLIP-L/336", shape=CLIP_L_336, patches=576)
SIGLIP = Encoder(name="so400m/384", shape=SIGLIP_SO400M_384, patches=729)
LANGUAGE: dict[str, DecoderShape] = {"Vicuna-7B": VICUNA_7B, "Qwen2-7B": QWEN2_7B}


def conditioner_flops(config: LaviConfig, width: int, depth: int, text_tokens: int, visual_tokens: int) -> int:
    """The visual path of the attention conditioner at prefill: projector, visual keys and values, all sites.

    Raises:
        ValueError: another conditioner; the closed form is for attention.
    """
    blocks, sites = _counts(config, depth)
    per_site = (2 + 2 * config.affine_parts) * text_tokens * width * config.width
    per_site += 4 * text_tokens * visual_tokens * config.width
    return (
        2 * visual_tokens * (_feature_width(config) * config.width + config.width**2)
        + blocks * 4 * visual_tokens * config.width * config.kv_width
        + sites * per_site
    )


def conditioner_parameters(config: LaviConfig, width: int, depth: int) -> int:
    """Weights of projector and attention conditioners; norms, biases and position embeddings are left out.

    Raises:
        ValueError: another conditioner.
    """
    blocks, sites = _counts(config, depth)
    projector = _feature_width(config) * config.width + config.width**2
    per_site = (1 + config.affine_parts) * width * config.width
    return projector + blocks * 2 * config.width * config.kv_width + sites * per_site


def visual_cache_bytes(config: LaviConfig, depth: int, visual_tokens: int, bytes_per_value: int = 2) -> int:
    """Bytes of the visual keys and values of one image set (bfloat16 by default)."""
    blocks, _ = _counts(config, depth)
    return visual_tokens * blocks * 2 * config.kv_width * bytes_per_value


def rows(text_tokens: int = 50) -> list[dict[str, Any]]:
    """The comparison at full size: image, tiled image and video settings.

    Args:
        text_tokens: Length of the prompt (N).

    Returns:
        Per setting: setting, ours_tflop, baseline_tflop, saving (share of the baseline's operations), vision_tflop
        (part of ours), cache_mb and baseline_cache_mb (visual part, bfloat16).
    """
    return [
        _row("Vicuna-7B", CLIP, CLIP, text_tokens, tiles=1),
        _row("Qwen2-7B", SIGLIP, SIGLIP, text_tokens, tiles=5),
        _row("Qwen2-7B", SIGLIP, SIGLIP, text_tokens, tiles=10),
        _row("Qwen2-7B", SIGLIP, CLIP, text_tokens, tiles=5),
        _row("Qwen2-7B", SIGLIP, CLIP, text_tokens, tiles=10),
        _row("Qwen2-7B", SIGLIP, SIGLIP, text_tokens, tiles=32, pooled=196),
    ]


def _row(
    language: str, baseline: Encoder, ours: Encoder, text_tokens: int, *, tiles: int, pooled: int | None = None
) -> dict[str, Any]:
    """One setting; `pooled` is the number of tokens a video frame is averaged to."""
    config, shape = LaviConfig(vision_width=ours.shape.width), LANGUAGE[language]
    concatenated = tiles * (pooled or baseline.patches)
    visual = tiles * (pooled or ours.patches)
    vision = ours.shape.flops(tiles)
    baseline_flops = baseline.shape.flops(tiles) + shape.prefill_flops(concatenated + text_tokens, causal=True)
    our_flops = vision + shape.prefill_flops(text_tokens, causal=True)
    our_flops += conditioner_flops(config, shape.width, shape.layers, text_tokens, visual)
    unit = "frames" if pooled else "tiles" if tiles > 1 else "tile"
    encoder = ours.name if ours is baseline else f"{ours.name} (baseline {baseline.name})"
    return {
        "setting": f"{language}, {encoder}, {tiles} {unit}, M={visual}",
        "ours_tflop": our_flops / 1e12,
        "baseline_tflop": baseline_flops / 1e12,
        "saving": 1.0 - our_flops / baseline_flops,
        "vision_tflop": vision / 1e12,
        "cache_mb": visual_cache_bytes(config, shape.layers, visual) / 1e6,
        "baseline_cache_mb": shape.cache_bytes(concatenated) / 1e6,
    }


def _counts(config: LaviConfig, depth: int) -> tuple[int, int]:
    """Modulated blocks and norms."""
    if config.conditioner != "attention":
        raise ValueError(f"the closed form is for the attention conditioner, not for {config.conditioner!r}")
    blocks = len(modulated_layers(config.layers, depth))
    return blocks, blocks * len(config.sites)


def _feature_width(config: LaviConfig) -> int:
    """Input channels of the projector, all listed ViT layers together (they cost the same concatenated or aligned)."""
    return len(config.vision_feature_layers) * config.vision_width
