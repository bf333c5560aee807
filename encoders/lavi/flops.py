"""Cost of LaVi in closed form, and against a model that puts its visual tokens into the sequence.

    concatenation: F_vit * tiles + F_lm(M + N)           LaVi: F_vit * tiles + F_lm(N) + F_cond(M, N)
    F_lm(T)   = 2 P T + 2 L D T^2 + 2 D vocab            P: weights of the linear layers, causal attention, head on one
    token F_vit     = 2 P_vit t + 4 L_vit t^2 D_vit            per tile of t tokens F_cond    = 2 M (d_v C + C^2) + 4
    |ML| M C kv + S (6 N D C + 4 N M C)

One multiply-add counts as two operations, the vision encoder is included, prefill only. M: visual tokens behind
pooling, N: text tokens, ML: modulated blocks, S: modulated norms, kv: channels of the visual keys, C: conditioner
width, D: model width.

Source: derived from public backbone shapes; arXiv:2506.16691 states its saving (94.0 % against LLaVA-OV-7B) without
shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mm.encoders.lavi.config import LaviConfig, modulated_layers


@dataclass(frozen=True, kw_only=True)
class LanguageShape:
    """Sizes of a gated decoder language model."""

    name: str
    """Shown in tables."""
    width: int
    """D."""
    depth: int
    """L."""
    kv_width: int
    """Channels of the keys (all key/value heads together)."""
    feed_forward: int
    """Channels inside the gated feed-forward part."""
    vocab: int
    """Vocabulary."""

    @property
    def linear_weights(self) -> int:
        """Weights of the linear layers of all blocks (P)."""
        attention = 2 * self.width * self.width + 2 * self.width * self.kv_width
        return self.depth * (attention + 3 * self.width * self.feed_forward)


@dataclass(frozen=True, kw_only=True)
class VisionShape:
    """Sizes of a vision transformer, counted up to the layer that is used."""

    name: str
    """Shown in tables."""
    width: int
    """D_vit, also the width of its features."""
    depth: int
    """Blocks that are run."""
    feed_forward: int
    """Channels inside the feed-forward part."""
    sequence: int
    """Tokens inside the encoder per tile, class token included (t)."""
    patches: int
    """Tokens it gives per tile."""

    @property
    def flops(self) -> float:
        """Operations per tile."""
        weights = self.depth * (4 * self.width**2 + 2 * self.width * self.feed_forward)
        return 2.0 * weights * self.sequence + 4.0 * self.depth * self.sequence**2 * self.width


QWEN2_7B = LanguageShape(name="Qwen2-7B", width=3584, depth=28, kv_width=512, feed_forward=18944, vocab=152064)
VICUNA_7B = LanguageShape(name="Vicuna-7B", width=4096, depth=32, kv_width=4096, feed_forward=11008, vocab=32000)
CLIP_L_336 = VisionShape(name="CLIP-L/336", width=1024, depth=23, feed_forward=4096, sequence=577, patches=576)
SO400M_384 = VisionShape(name="so400m/384", width=1152, depth=27, feed_forward=4304, sequence=729, patches=729)


def language_flops(shape: LanguageShape, tokens: int) -> float:
    """Prefill of `tokens` tokens, logits of the last one."""
    causal_attention = 2.0 * shape.depth * shape.width * tokens**2
    return 2.0 * shape.linear_weights * tokens + causal_attention + 2.0 * shape.width * shape.vocab


def conditioner_flops(config: LaviConfig, width: int, depth: int, text_tokens: int, visual_tokens: int) -> float:
    """The visual path of the attention conditioner at prefill: projector, visual keys and values, all sites.

    Raises:
        ValueError: another conditioner; the closed form is for attention.
    """
    blocks, sites = _counts(config, depth)
    per_site = (2 + 2 * config.affine_parts) * text_tokens * width * config.width
    per_site += 4 * text_tokens * visual_tokens * config.width
    return float(
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


def text_cache_bytes(shape: LanguageShape, tokens: int, bytes_per_value: int = 2) -> int:
    """Bytes of an ordinary key/value cache, for comparison with the concatenation of visual tokens."""
    return tokens * shape.depth * 2 * shape.kv_width * bytes_per_value


def rows(text_tokens: int = 50) -> list[dict[str, Any]]:
    """The comparison at full size: image, tiled image and video settings.

    Returns:
        Per setting: setting, ours_tflop, baseline_tflop, saving (share of the baseline's operations), vision_tflop
        (part of ours), cache_mb and baseline_cache_mb (visual part, bfloat16).
    """
    video = {"tiles": 32, "tokens_per_tile": 196}
    settings = [
        _row(VICUNA_7B, CLIP_L_336, CLIP_L_336, text_tokens, tiles=1),
        _row(QWEN2_7B, SO400M_384, SO400M_384, text_tokens, tiles=5),
        _row(QWEN2_7B, SO400M_384, SO400M_384, text_tokens, tiles=10),
        _row(QWEN2_7B, SO400M_384, CLIP_L_336, text_tokens, tiles=5),
        _row(QWEN2_7B, SO400M_384, CLIP_L_336, text_tokens, tiles=10),
        _row(QWEN2_7B, SO400M_384, SO400M_384, text_tokens, **video),
    ]
    return settings


def _row(
    language: LanguageShape,
    baseline: VisionShape,
    ours: VisionShape,
    text_tokens: int,
    *,
    tiles: int,
    tokens_per_tile: int | None = None,
) -> dict[str, Any]:
    config = LaviConfig(vision_width=ours.width)
    concatenated = tiles * (tokens_per_tile or baseline.patches)
    visual = tiles * (tokens_per_tile or ours.patches)
    baseline_flops = baseline.flops * tiles + language_flops(language, concatenated + text_tokens)
    our_flops = ours.flops * tiles + language_flops(language, text_tokens)
    our_flops += conditioner_flops(config, language.width, language.depth, text_tokens, visual)
    unit = "frames" if tokens_per_tile else "tiles" if tiles > 1 else "tile"
    encoder = ours.name if ours is baseline else f"{ours.name} (baseline {baseline.name})"
    return {
        "setting": f"{language.name}, {encoder}, {tiles} {unit}, M={visual}",
        "ours_tflop": our_flops / 1e12,
        "baseline_tflop": baseline_flops / 1e12,
        "saving": 1.0 - our_flops / baseline_flops,
        "vision_tflop": ours.flops * tiles / 1e12,
        "cache_mb": visual_cache_bytes(config, language.depth, visual) / 1e6,
        "baseline_cache_mb": text_cache_bytes(language, concatenated) / 1e6,
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
