"""Closed FLOP and cache formulas for decoder language models and vision transformers, and the shapes of known ones.

T tokens, L layers, d width, V vocabulary, P_lin weights of the linear layers inside the blocks:

    decoder   2 P_lin T + 4 L h T^2 (halved if causal) + 2 d V (last position, or T of them),  h = heads * head width
    ViT       2 P_lin T + 4 L d T^2, plus the patch embedding 2 * 3 * patch^2 * d per patch if it is counted

Source: LaVi (arXiv:2506.16691) reports FLOPs relative to a baseline without formulas; these follow from the layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """Sizes of a decoder language model with a gated feed-forward part."""

    layers: int
    """Blocks (L)."""
    width: int
    """Channels of the residual stream (d)."""
    heads: int
    """Query heads."""
    kv_heads: int
    """Key and value heads."""
    head_width: int
    """Channels per head."""
    feed_forward: int
    """Inner channels of the feed-forward part."""
    vocab: int
    """Vocabulary size (V)."""
    gated: bool = True
    """Three matrices in the feed-forward part (SwiGLU) instead of two."""

    @property
    def linear_weights(self) -> int:
        """Weights of all linear layers inside the blocks (P_lin)."""
        attention = 2 * self.width * self.head_width * (self.heads + self.kv_heads)
        feed_forward = (3 if self.gated else 2) * self.width * self.feed_forward
        return self.layers * (attention + feed_forward)

    def prefill_flops(self, tokens: int, *, causal: bool, logits: Literal["last", "all", "none"] = "last") -> int:
        """FLOPs of reading a prompt.

        Args:
            tokens: Length of the prompt, visual tokens included.
            causal: Count the lower triangle of the attention only.
            logits: Positions at which the head is applied.
        """
        attention = 4 * self.layers * self.heads * self.head_width * tokens**2
        heads = {"last": 1, "all": tokens, "none": 0}[logits]
        head = 2 * self.width * self.vocab * heads
        return 2 * self.linear_weights * tokens + (attention // 2 if causal else attention) + head

    def decode_flops(self, context: int) -> int:
        """FLOPs of one new token after `context` cached ones."""
        attention = 4 * self.layers * self.heads * self.head_width * (context + 1)
        return 2 * self.linear_weights + attention + 2 * self.width * self.vocab

    def cache_bytes(self, tokens: int, *, bytes_per_value: int = 2) -> int:
        """Bytes of the key-value cache of one sequence."""
        return 2 * self.layers * self.kv_heads * self.head_width * tokens * bytes_per_value


@dataclass(frozen=True, kw_only=True)
class ViTShape:
    """Sizes of a vision transformer."""

    layers: int
    """Blocks that run (L)."""
    width: int
    """Channels (d)."""
    feed_forward: int
    """Inner channels of the feed-forward part."""
    tokens: int
    """Tokens per picture, class token included (T)."""
    patch: int = 14
    """Side of a patch in pixels."""
    patches: int = 0
    """Patches per picture that the embedding reads; 0 leaves the embedding out."""

    @property
    def linear_weights(self) -> int:
        """Weights of all linear layers inside the blocks (P_lin)."""
        return self.layers * (4 * self.width**2 + 2 * self.width * self.feed_forward)

    def flops(self, pictures: int = 1) -> int:
        """FLOPs of encoding some pictures or tiles."""
        attention = 4 * self.layers * self.width * self.tokens**2
        embedding = 2 * 3 * self.patch**2 * self.width * self.patches
        return pictures * (2 * self.linear_weights * self.tokens + attention + embedding)


QWEN2_7B = DecoderShape(layers=28, width=3584, heads=28, kv_heads=4, head_width=128, feed_forward=18944, vocab=152064)
VICUNA_7B = DecoderShape(layers=32, width=4096, heads=32, kv_heads=32, head_width=128, feed_forward=11008, vocab=32000)
CLIP_L_336 = ViTShape(layers=23, width=1024, feed_forward=4096, tokens=577)
"""Up to the penultimate layer, as LLaVA uses it; patch embedding left out."""
SIGLIP_SO400M_384 = ViTShape(layers=27, width=1152, feed_forward=4304, tokens=729)
"""All layers; patch embedding left out."""
