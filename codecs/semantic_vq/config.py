"""Sizes of the semantic tokenizer; the defaults are those of the published VQ-KD base model."""

from __future__ import annotations

from dataclasses import dataclass, field

from mm.codecs.semantic_vq.quantizer import CosineQuantizerConfig


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """A plain vision transformer."""

    width: int = 768
    """Channels per token (W)."""
    depth: int = 12
    """Blocks."""
    num_heads: int = 12
    """Attention heads (H); must divide `width`."""
    mlp_ratio: int = 4
    """Hidden width of the feed-forward part, in widths."""

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.num_heads, self.mlp_ratio) < 1:
            raise ValueError(f"sizes of a transformer must be at least 1, got {self}")
        if self.width % self.num_heads:
            raise ValueError(f"num_heads must divide width, got {self.num_heads} and {self.width}")


@dataclass(frozen=True, kw_only=True)
class SemanticVQConfig:
    """Encoder, codebook and decoder of the tokenizer."""

    image_size: int = 224
    """Side of a frame, pixels (S)."""
    patch_size: int = 16
    """Side of the square that one code stands for, pixels; must divide `image_size`."""
    encoder: ViTConfig = field(default_factory=ViTConfig)
    """From patches to latents."""
    decoder: ViTConfig = field(default_factory=lambda: ViTConfig(depth=3))
    """From codes to teacher features; published depths are 1 and 3."""
    quantizer: CosineQuantizerConfig = field(default_factory=CosineQuantizerConfig)
    """The codebook and how it learns."""
    target_width: int = 512
    """Channels of the teacher's patch features (C)."""
    teacher: str = "open_clip/ViT-B-16-quickgelu/openai"
    """Whose features the codes were trained to rebuild; a label that travels with the weights, nothing is loaded."""

    def __post_init__(self) -> None:
        if self.image_size < 1 or self.patch_size < 1 or self.image_size % self.patch_size:
            raise ValueError(
                f"patch_size must divide image_size, got image_size={self.image_size}, patch_size={self.patch_size}"
            )
        if self.target_width < 1:
            raise ValueError(f"target_width must be at least 1, got {self.target_width}")

    @property
    def side(self) -> int:
        """Codes along one side of a frame (h = w)."""
        return self.image_size // self.patch_size


def base(decoder_depth: int = 3) -> SemanticVQConfig:
    """The published sizes: ViT-B/16, 8192 codes of width 32."""
    return SemanticVQConfig(decoder=ViTConfig(depth=decoder_depth))


def tiny(target_width: int = 32) -> SemanticVQConfig:
    """The laptop model: 8 x 8 codes per 64-pixel frame, 256 codes, for procedural pictures with known contents."""
    return SemanticVQConfig(
        image_size=64,
        patch_size=8,
        encoder=ViTConfig(width=96, depth=3, num_heads=4),
        decoder=ViTConfig(width=64, depth=1, num_heads=2),
        quantizer=CosineQuantizerConfig(size=256, width=16, revive_after=50),
        target_width=target_width,
        teacher="oracle: colour and shape of every patch",
    )
