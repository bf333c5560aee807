"""Sizes of the image encoder, with the published configurations and the tiny one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from mm.encoders.flame.tower import TextTowerConfig
from mm.vision import ImagePreprocessing, TowerConfig

LEAST_HIDDEN = 4096
"""Hidden channels of the published head, unless the text embedding is wider."""


def vit(name: str, *, size: int, **options: float) -> TowerConfig:
    """An open_clip vision transformer that is read behind its last block, without final norm and projection."""
    return TowerConfig(
        library="open_clip",
        name=name,
        options={"pool_type": "avg"} | options,
        layer=-1,
        final_norm=False,
        activation="gelu",
        preprocessing=ImagePreprocessing(size=size, resize="crop"),
    )


@dataclass(frozen=True, kw_only=True)
class FlameVisionConfig:
    """An image encoder that speaks the language of a frozen text tower."""

    tower: TowerConfig = field(default_factory=lambda: vit("ViT-B-16", size=224))
    """The vision transformer; trained from scratch."""
    text_width: int = 5120
    """Channels of the text embeddings (D), hence of the image embedding."""
    mlp_depth: int = 2
    """Linear layers of the head."""
    hidden: int | None = None
    """Hidden channels of the head; none given takes the published rule max(D, 4096)."""
    init_logit_scale: float = math.log(10.0)
    """Start of the logarithm of the scale s; log(10) goes with the sigmoid loss, log(1 / 0.07) with the NCE."""
    init_logit_bias: float | None = -10.0
    """Start of the bias b of the sigmoid loss; none given leaves it out, as the NCE needs."""
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    """The text tower that this encoder was, or will be, trained against."""

    def __post_init__(self) -> None:
        if self.mlp_depth < 1 or self.text_width < 1 or (self.hidden is not None and self.hidden < 1):
            raise ValueError(
                "mlp_depth, text_width and hidden must be at least 1, "
                f"got {self.mlp_depth}, {self.text_width} and {self.hidden}"
            )
        if self.mlp_depth > 2 and self.head_hidden != self.text_width:
            raise ValueError(
                f"a head of {self.mlp_depth} layers needs hidden = text_width, because every layer behind the first "
                f"maps hidden to text_width; got {self.head_hidden} and {self.text_width}"
            )

    @property
    def head_hidden(self) -> int:
        """Hidden channels of the head (h)."""
        return self.hidden if self.hidden is not None else max(self.text_width, LEAST_HIDDEN)


def flame_config(name: str) -> FlameVisionConfig:
    """A named configuration.

    "ViT-B-16" and "ViT-L-14" are the published ones, against Mistral-Nemo (weights exist for the former only). "tiny"
    belongs to the tiny language model of this toolkit.

    Raises:
        ValueError: unknown name.

    Source: configurations of the published code of FLAME (arXiv:2411.11927).
    """
    if name not in PRESETS:
        raise ValueError(f"unknown configuration {name!r}; there are: {', '.join(PRESETS)}")
    return PRESETS[name]


PRESETS = {
    "ViT-B-16": FlameVisionConfig(),
    "ViT-L-14": FlameVisionConfig(tower=vit("ViT-L-14", size=224)),
    "tiny": FlameVisionConfig(
        tower=vit("ViT-B-16", size=48, patch_size=8, width=96, layers=3, head_width=32, mlp_ratio=2),
        text_width=128,
        hidden=256,
        text=TextTowerConfig(language="tiny_lm", layer="-1", templates="world"),
    ),
}
"""Name -> configuration."""
