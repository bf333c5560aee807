"""Sizes of VELVET-Med: vision encoder (Tv, Sv, Bv), text encoder (St, Bt), and the parts that join them.

Source: VELVET-Med (Zhang et al. 2025, arXiv:2508.12108) and the settings of its published code. The main model is
Bt + Sv.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Level = Literal["report", "sentence", "word"]
LEVELS: tuple[Level, ...] = ("report", "sentence", "word")
FUSED_FROM = 4
"""Window edge from which the fused window attention beats MONAI's; training steps on one CPU core, fused against MONAI:
edge 3: 1.2 times as long, edge 4: 0.6 to 0.8, edge 7: 0.5 to 0.6."""
WORD_PIECES = 30522
"""Vocabulary of BERT-sized models in front of the sentence tokens."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(f"VELVET-Med: {message}")


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """A 3-D Swin Transformer, as MONAI builds it for SwinUNETR."""

    in_channels: int = 1
    """Channels of a volume."""
    embed_dim: int = 48
    """Channels after the patch embedding (C); the last output has 16 C."""
    depths: tuple[int, int, int, int] = (2, 8, 8, 8)
    """Blocks per stage."""
    num_heads: tuple[int, int, int, int] = (4, 8, 16, 32)
    """Attention heads per stage."""
    window_size: int = 7
    """Edge of an attention window, tokens."""
    patch_size: int = 2
    """Edge of a patch, voxels."""
    mlp_ratio: float = 4.0
    """Hidden width of the feed-forward part over its width."""
    volume_size: int = 96
    """Edge of the cube that volumes are brought to, voxels; the encoder itself takes any size."""
    merging: Literal["current", "legacy"] = "current"
    """Patch merging of MONAI since 1.5, or of 1.4 and before, which weights from that time need."""
    attention: Literal["auto", "fused", "monai"] = "auto"
    """Window attention of `mm.kernels` (same numbers, less memory) or MONAI's own; auto takes the faster: ours from
    windows of 4 tokens per edge on."""
    checkpointing: bool = False
    """Recompute blocks in the backward pass, as the authors do. Deviation: off; fused attention saves memory too."""

    def __post_init__(self) -> None:
        for width, heads in zip(self.widths[:4], self.num_heads, strict=True):
            _require(width % heads == 0, f"num_heads must divide the widths {self.widths[:4]}, got {self.num_heads}")
        _require(min(self.depths) >= 1, f"depths must be at least 1, got {self.depths}")
        for name in ("in_channels", "embed_dim", "window_size", "patch_size", "volume_size"):
            _require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        _require(self.merging in ("current", "legacy"), f"merging must be current or legacy, got {self.merging!r}")
        allowed = ("auto", "fused", "monai")
        _require(self.attention in allowed, f"attention must be one of {', '.join(allowed)}, got {self.attention!r}")

    @property
    def fused(self) -> bool:
        """Whether the window attention of `mm.kernels` is used."""
        return self.attention == "fused" or (self.attention == "auto" and self.window_size >= FUSED_FROM)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the five outputs."""
        return tuple(self.embed_dim * 2**stage for stage in range(5))

    @property
    def level_widths(self) -> dict[Level, int]:
        """Channels of the regions that words, sentences and reports are compared with."""
        return {"report": self.widths[4], "sentence": self.widths[3], "word": self.widths[2]}


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """TriBERT: one post-norm BERT stack whose attention mask makes it serve words, sentences and reports."""

    vocab_size: int = WORD_PIECES + 50
    """Word pieces and sentence tokens together; the sentence tokens are the last `max_sentences` ids."""
    width: int = 768
    """Channels (D)."""
    feed_forward: int = 3072
    """Hidden width of the feed-forward part."""
    layers: int = 12
    """Text layers."""
    fusion_layers: int = 6
    """Further layers with cross-attention to the volume; 0 leaves the multimodal part out."""
    num_heads: int = 6
    """Attention heads (H). The authors run 6 although the weights they load were trained with 12."""
    dropout: float = 0.1
    """On hidden states and attention weights, in training."""
    norm_eps: float = 1e-12
    """Offset of every LayerNorm."""
    max_tokens: int = 512
    """Longest report, tokens; positions beyond have no embedding."""
    max_sentence_tokens: int = 200
    """Longest sentence, counted with the two special tokens of a plain BERT input."""
    max_sentences: int = 50
    """Sentence tokens [SEN_1] ... that exist (K)."""
    pad_id: int = 0
    """Id of [PAD]."""
    cls_id: int = 2
    """Id of [CLS]."""
    sep_id: int = 3
    """Id of [SEP], used only without sentence modelling."""
    mask_id: int = 4
    """Id of [MASK]."""
    sentence_modeling: bool = True
    """False: an ordinary BERT input and mask, the ablation of the paper."""
    legacy_mask: bool = False
    """True repeats the authors' mask for reports without padding, which opens the rows of the last two sentences."""

    def __post_init__(self) -> None:
        _require(
            self.width % self.num_heads == 0, f"num_heads must divide width, got {self.num_heads} and {self.width}"
        )
        _require(self.layers >= 1, f"layers must be at least 1, got {self.layers}")
        _require(self.fusion_layers >= 0, f"fusion_layers must not be negative, got {self.fusion_layers}")
        _require(0.0 <= self.dropout < 1.0, f"dropout must lie in [0, 1), got {self.dropout}")
        _require(
            max(self.pad_id, self.cls_id, self.sep_id, self.mask_id) < self.first_sentence_id,
            f"special ids must lie below the first sentence token {self.first_sentence_id}",
        )
        _require(
            self.max_sentence_tokens >= 3, f"max_sentence_tokens must be at least 3, got {self.max_sentence_tokens}"
        )

    @property
    def first_sentence_id(self) -> int:
        """Id of [SEN_1]."""
        return self.vocab_size - self.max_sentences


@dataclass(frozen=True, kw_only=True)
class LocalConfig:
    """Similarity of tokens and regions, see `mm.kernels.local_contrastive_similarity`."""

    region_temperature: float = 4.0
    """Multiplies the softmax over tokens inside the softmax over regions."""
    token_temperature: float = 5.0
    """Multiplies the cosines inside the log-sum-exp."""
    similarity_temperature: float = 10.0
    """Multiplies the log-sum-exp."""
    pre_scale: float = 1.0
    """Multiplies region-token products in the softmax over tokens. The published 1.0 makes long texts attend almost
    uniformly; larger values sharpen the attention."""
    normalize_before_attention: bool = True
    """Compare unit vectors, as published."""
    reduction: Literal["sum", "mean"] = "sum"
    """Of the tokens inside the logarithm."""
    impl: str = "auto"
    """Implementation: auto, blocked or reference; reference is faster where B x J x S x L fits the memory."""


@dataclass(frozen=True, kw_only=True)
class VelvetConfig:
    """The whole pre-training model."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    """Vision encoder."""
    text: TextConfig = field(default_factory=TextConfig)
    """Text encoder."""
    levels: tuple[Level, ...] = LEVELS
    """Which text levels are tied to the volume; each has two linear heads."""
    contrastive_width: int = 512
    """Channels of the shared space of a level (E)."""
    last_layers: int = 1
    """Text layers whose outputs are combined before pooling (n)."""
    layer_reduction: Literal["sum", "mean"] = "sum"
    """How those layers are combined."""
    sentence_vector: Literal["mean", "token"] = "mean"
    """mean: of the sentence token and its words, as published; token: the sentence token alone."""
    temperature: Literal["raw", "log"] = "raw"
    """Report temperature: a plain scalar as published, or its logarithm, kept in [0.01, 1]."""
    initial_temperature: float = 0.07
    """Its start value; it divides the similarities."""
    local: LocalConfig = field(default_factory=LocalConfig)
    """Sentence and word similarity."""
    text_heads: bool = True
    """Masked-word head of the text layers."""
    vision_heads: bool = True
    """Contrast, rotation and reconstruction heads of the vision encoder."""
    decoder: Literal["deconv", "unet"] = "deconv"
    """Reconstruction head: five transposed convolutions, or convolution + norm + interpolation."""

    def __post_init__(self) -> None:
        _require(
            bool(self.levels) and set(self.levels) <= set(LEVELS) and len(set(self.levels)) == len(self.levels),
            f"levels must name some of {', '.join(LEVELS)}, each once, got {self.levels}",
        )
        _require(
            1 <= self.last_layers <= self.text.layers + 1,
            f"last_layers must be 1..{self.text.layers + 1}, got {self.last_layers}",
        )
        _require(
            self.layer_reduction in ("sum", "mean"), f"layer_reduction is sum or mean, got {self.layer_reduction!r}"
        )
        _require(
            self.sentence_vector in ("mean", "token"), f"sentence_vector is mean or token, got {self.sentence_vector!r}"
        )
        _require(self.temperature in ("raw", "log"), f"temperature is raw or log, got {self.temperature!r}")
        _require(self.initial_temperature > 0, f"initial_temperature must be above 0, got {self.initial_temperature}")
        _require(self.decoder in ("deconv", "unet"), f"decoder is deconv or unet, got {self.decoder!r}")
        if "sentence" in self.levels and not self.text.sentence_modeling:
            raise ValueError("VELVET-Med: the sentence level needs text.sentence_modeling=True; drop it from levels")

    @classmethod
    def preset(cls, vision: str = "Sv", text: str = "Bt", **changes: object) -> VelvetConfig:
        """Sizes of the paper: vision "Tv", "Sv" or "Bv" with text "St" or "Bt"; `changes` are further fields.

        Raises:
            ValueError: an unknown size.

        Example:
            >>> VelvetConfig.preset("Tv", "St").vision.depths
            (2, 2, 2, 2)
        """
        for size, known in ((vision, VISION_SIZES), (text, TEXT_SIZES)):
            if size not in known:
                raise ValueError(f"unknown size {size!r}; there are {', '.join(known)}")
        sizes = {"vision": VISION_SIZES[vision], "text": TEXT_SIZES[text]}
        return cls(**(sizes | changes))  # type: ignore[arg-type]


VISION_SIZES = {
    "Tv": VisionConfig(embed_dim=48, depths=(2, 2, 2, 2), num_heads=(3, 6, 12, 24)),
    "Sv": VisionConfig(embed_dim=48, depths=(2, 8, 8, 8), num_heads=(4, 8, 16, 32)),
    "Bv": VisionConfig(embed_dim=96, depths=(2, 8, 8, 8), num_heads=(4, 8, 16, 32)),
}
"""Parameters: 8.06, 22.85 and 88.24 million."""
TEXT_SIZES = {"St": TextConfig(layers=6), "Bt": TextConfig(layers=12)}
"""Text layers; six fusion layers follow in both."""
