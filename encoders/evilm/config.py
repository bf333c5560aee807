"""Sizes of E-ViLM, the presets, and those of the two models it descends from.

The paper's abstract gives a budget (15 % of the reference's parameters, 5.2 % of its operations) and no sizes; the
presets are derived from that budget and from VIOLET (arXiv:2111.12681) and VIOLETv2 (arXiv:2209.01540).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

PATCH = 4
"""Side in pixels of a patch."""
PATCH_FRAMES = 2
"""Frames under one patch kernel."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Swin3DConfig:
    """Sizes of the video trunk."""

    embed_dim: int = 64
    """Channels behind the patch embedding; they double at each merging."""
    depths: tuple[int, ...] = (2, 2, 6, 2)
    """Blocks per stage; places are merged two by two between stages."""
    num_heads: tuple[int, ...] = (2, 4, 8, 16)
    """Attention heads per stage; each must divide the channels of its stage."""
    window: tuple[int, int, int] = (8, 7, 7)
    """Attention window in frames, rows, columns; clipped to the volume."""
    temporal_pad: Literal["replicate", "zero"] = "replicate"
    """Frame behind the last one, for the two-frame patch kernel: the last one again, or zeros (published weights)."""
    drop_path: float = 0.2
    """Stochastic depth of the last block; grows linearly from 0."""

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.num_heads) or not self.depths:
            raise ValueError(f"depths and num_heads name the stages, got {self.depths} and {self.num_heads}")
        for stage, heads in enumerate(self.num_heads):
            if (self.embed_dim << stage) % heads:
                raise ValueError(f"num_heads[{stage}]={heads} must divide {self.embed_dim << stage} channels")

    @property
    def out_width(self) -> int:
        """Channels of the last stage."""
        return self.embed_dim << (len(self.depths) - 1)

    @property
    def cell(self) -> int:
        """Side in pixels of one output place, which is also one cell of a mask: 32 with four stages."""
        return PATCH << (len(self.depths) - 1)


@dataclass(frozen=True, kw_only=True)
class EViLMConfig:
    """Sizes of the video-language model."""

    video: Swin3DConfig = field(default_factory=Swin3DConfig)
    """The video trunk."""
    width: int = 384
    """Channels of text, fusion and the video tokens that enter it (D)."""
    num_heads: int = 12
    """Attention heads of text and fusion layers; must divide `width`."""
    text_layers: int = 0
    """Transformer layers of the text before fusion; 0 leaves the embeddings alone."""
    fusion_layers: int = 3
    """Transformer layers over video and text together."""
    fusion_mask: Literal["full", "seq2seq", "video_self"] = "full"
    """Who sees whom in fusion: all; text causal, video sees no text; video sees no text, text sees everything."""
    vocab_size: int = 30522
    """Words of the tokenizer."""
    max_text_len: int = 512
    """Rows of the text position table."""
    dropout: float = 0.1
    """Of text, fusion and heads."""
    init_std: float = 0.02
    """Spread of fresh weights; narrow models need more than the published 0.02, which suits a width of 768."""
    positions: Literal["interpolate", "slice"] = "interpolate"
    """How the position tables meet another grid: resized, or their first rows (published weights)."""
    position_grid: int = 7
    """Side of the table of places; 7 fits 224 pixels."""
    frame_table: int = 6
    """Rows of the frame table."""
    codebook_size: int = 8192
    """Codes of the tokenizer that masked video modelling predicts; 0 leaves that head out."""
    codes_per_cell: int = 2
    """Codes along one side of a cell (r): trunk stride over tokenizer stride."""
    tie_words: bool = True
    """Word prediction uses the word embeddings as its last layer."""
    contrastive_width: int = 0
    """Channels of the contrastive projections (VTC); 0 leaves them out, it needs `text_layers`."""
    answers: tuple[str, ...] = ()
    """Answer list: `answer` chooses among these."""
    answer_head: Literal["words", "classifier"] = "words"
    """Answers come from the word prediction at a mask, or from a classifier over `answers`."""
    mask_fill: Literal["mean", "black", "learned"] = "mean"
    """What hidden cells hold: the mean colour, black, or a learned token behind the patch embedding."""
    codes_from: str = ""
    """Name of the tokenizer whose codes the head predicts; a label that travels with the weights, nothing is loaded."""
    image_size: int = 224
    """Side in pixels of the frames in training; others work as well."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean colour for normalisation, of values in [0, 1]."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Spread for normalisation."""

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ValueError(f"num_heads must divide width, got width={self.width}, num_heads={self.num_heads}")
        if 2 * self.width % self.codes_per_cell**2:
            raise ValueError(f"codes_per_cell={self.codes_per_cell}: its square must divide 2 * width={2 * self.width}")
        if self.contrastive_width and not self.text_layers:
            raise ValueError("contrastive_width needs text_layers > 0: text embeddings alone have no pooled context")
        if self.answer_head == "classifier" and not self.answers:
            raise ValueError("answer_head='classifier' needs the list of answers")


SWIN_T = Swin3DConfig(embed_dim=96, num_heads=(3, 6, 12, 24))
PUBLISHED: dict[str, Any] = {
    "width": 768,
    "fusion_layers": 12,
    "positions": "slice",
    "position_grid": 14,
    "tie_words": False,
}
"""What the two ancestors share."""

PRESETS: dict[str, EViLMConfig] = {
    "evilm_30m": EViLMConfig(),
    "evilm_35m_dual": EViLMConfig(text_layers=3, contrastive_width=256),
    "evilm_swin_t": EViLMConfig(video=SWIN_T, text_layers=3, contrastive_width=256),
    "evilm_slim": EViLMConfig(video=Swin3DConfig(embed_dim=32, num_heads=(1, 2, 4, 8))),
    "violetv2": EViLMConfig(
        video=Swin3DConfig(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), temporal_pad="zero"),
        **PUBLISHED,
    ),
    "violet_v1": EViLMConfig(
        video=Swin3DConfig(embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24), temporal_pad="zero"),
        **PUBLISHED | {"mask_fill": "black", "codes_per_cell": 1},
    ),
    "debug": EViLMConfig(
        video=Swin3DConfig(embed_dim=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), drop_path=0.0),
        width=64,
        num_heads=4,
        text_layers=1,
        fusion_layers=1,
        contrastive_width=32,
    ),
}
"""Name -> configuration. `evilm_slim` stays under 5.2 % of VIOLETv2's operations, the abstract's share."""


def evilm_config(name: str, **fields: Any) -> EViLMConfig:
    """A named configuration with some fields replaced.

    Raises:
        ValueError: unknown name.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown configuration {name!r}; there are: {', '.join(PRESETS)}")
    return replace(PRESETS[name], **fields)
