"""Every knob of LaVi in one frozen config.

The published text confirms the idea (additive, token-wise, vision-conditioned deltas on the affine parameters of chosen
norms; MLP-, convolution- and attention-based conditioners, attention chosen) but not its sizes. Defaults that had to
be chosen here are marked `Deviation:` with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Site = Literal["attn", "ffn"]
SITES: tuple[Site, ...] = ("attn", "ffn")


@dataclass(frozen=True, kw_only=True)
class LaviConfig:
    """How vision modulates the norms of a language model (arXiv:2506.16691)."""

    vision_width: int
    """Channels of the vision features per listed ViT layer (d_v)."""
    conditioner: Literal["attention", "mlp", "conv", "film"] = "attention"
    """What computes the deltas; `film` is a control without token-wise conditioning, not LaVi."""
    layers: str | tuple[int, ...] = "every:4"
    """Modulated blocks: "every:k" from block 0, "first:n", "last:n" or indices. Deviation: paper value unknown."""
    sites: tuple[Site, ...] = ("attn", "ffn")
    """Modulated norms of a chosen block: before attention, before the feed-forward part, or both."""
    modulate: Literal["both", "scale", "shift"] = "both"
    """Which affine parameters get a delta."""
    relative: bool = False
    """True multiplies the scale delta by the pretrained weight (safer where weights are huge). Paper: absolute."""
    width: int = 1024
    """Conditioner channels (c). Deviation: paper value unknown; 1024 keeps it at 2-3 % of a 7B model."""
    num_heads: int = 16
    """Query heads of the attention conditioner (H); must divide `width`."""
    num_kv_heads: int = 4
    """Key/value heads, shared by both sites of a block; fewer than `num_heads` keeps the visual cache small."""
    qk_norm: bool = True
    """RMS-normalise queries and keys per head."""
    activation: Literal["none", "silu"] = "none"
    """Activation in front of the zero-initialised output projection; both map zero to zero."""
    num_slots: int = 64
    """mlp conditioner: visual tokens are averaged into this many ordered slots (P)."""
    token_hidden: int = 16
    """mlp conditioner: hidden width of the token mixing (h)."""
    channel_hidden: int = 1024
    """mlp conditioner: hidden width of the channel mixing."""
    kernel_size: int = 7
    """conv conditioner: depthwise kernel, odd."""
    conv_depth: int = 2
    """conv conditioner: number of mixer blocks over the patch grid."""
    cells: int = 4
    """conv conditioner: each tile is pooled to cells x cells before the text reads it (p)."""
    pool: int = 0
    """Average every tile or frame to pool x pool tokens before the projector; 0 keeps all tokens. Videos want 14."""
    num_tiles: int = 16
    """Rows of the tile embedding; tile ids must be smaller."""
    num_frames: int = 64
    """Rows of the frame embedding; frame ids must be smaller."""
    num_images: int = 8
    """Rows of the image (segment) embedding; image ids must be smaller."""
    vision_feature_layers: tuple[int, ...] = (-2,)
    """ViT layers the features come from; several need `feature_mode`."""
    feature_mode: Literal["dense", "aligned"] = "dense"
    """dense: channels of the listed layers are concatenated; aligned: each modulated block reads its own layer."""
    vision_dropout: float = 0.0
    """Share of training samples whose vision is dropped, so that guidance has an unconditional branch."""
    delta_scale: float = 1.0
    """Factor on all deltas; 0 gives the plain language model."""
    guidance: float = 1.0
    """Default of `generate`: logits0 + guidance * (logits1 - logits0), logits0 without vision; 1 is a single pass."""
    modulate_first_token: bool = True
    """False leaves the first token of every row alone (it often serves as attention sink)."""

    def __post_init__(self) -> None:
        for name in ("vision_width", "width", "num_slots", "token_hidden", "channel_hidden", "conv_depth", "cells"):
            _require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        for name in ("pool", "num_tiles", "num_frames", "num_images"):
            _require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        _require_one_of("conditioner", self.conditioner, ("attention", "mlp", "conv", "film"))
        _require_one_of("modulate", self.modulate, ("both", "scale", "shift"))
        _require_one_of("activation", self.activation, ("none", "silu"))
        _require_one_of("feature_mode", self.feature_mode, ("dense", "aligned"))
        _require(
            bool(self.sites) and len(set(self.sites)) == len(self.sites) and set(self.sites) <= set(SITES),
            f"sites must name 'attn', 'ffn' or both, each once, got {self.sites}",
        )
        _require(
            self.width % self.num_heads == 0, f"num_heads must divide width, got {self.num_heads} and {self.width}"
        )
        _require(
            self.num_heads % self.num_kv_heads == 0,
            f"num_kv_heads must divide num_heads, got {self.num_kv_heads} and {self.num_heads}",
        )
        _require(self.kernel_size % 2 == 1, f"kernel_size must be odd, got {self.kernel_size}")
        _require(0.0 <= self.vision_dropout < 1.0, f"vision_dropout must lie in [0, 1), got {self.vision_dropout}")
        _require(bool(self.vision_feature_layers), "vision_feature_layers must list at least one layer")

    @property
    def kv_width(self) -> int:
        """Channels of the visual keys (and of the values) of one block: H_kv * c / H."""
        return self.num_kv_heads * self.width // self.num_heads

    @property
    def affine_parts(self) -> int:
        """How many affine parameters get a delta: 2 for "both", otherwise 1."""
        return 2 if self.modulate == "both" else 1


def modulated_layers(layers: str | tuple[int, ...], depth: int) -> tuple[int, ...]:
    """Block indices that a `LaviConfig.layers` value means for a model of `depth` blocks.

    Raises:
        ValueError: not one of the known forms, or indices outside the model.

    Example:
        >>> modulated_layers("every:4", 10), modulated_layers("last:2", 10)
        ((0, 4, 8), (8, 9))
    """
    if isinstance(layers, str):
        rule, _, number = layers.partition(":")
        if rule not in ("every", "first", "last") or not number.isdecimal() or int(number) < 1:
            raise ValueError(
                f"layers={layers!r} is not understood; write 'every:4', 'first:8', 'last:8' or a tuple of block indices"
            )
        count = int(number)
        if rule == "every":
            return tuple(range(0, depth, count))
        _require(count <= depth, f"layers={layers!r} asks for {count} blocks, the language model has {depth}")
        return tuple(range(count)) if rule == "first" else tuple(range(depth - count, depth))
    chosen = tuple(sorted(layers))
    _require(bool(chosen), "layers is empty: name at least one block")
    _require(len(set(chosen)) == len(chosen), f"layers={layers} names a block twice")
    _require(
        chosen[0] >= 0 and chosen[-1] < depth,
        f"layers={layers} leaves the language model, whose blocks are 0..{depth - 1}",
    )
    return chosen


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(f"LaviConfig: {message}")


def _require_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    _require(value in allowed, f"{name} must be one of {', '.join(allowed)}, got {value!r}")
