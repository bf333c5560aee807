"""FLAME: a frozen language model as text tower of contrastive image-text training (arXiv:2411.11927).

    text = FacetTextEncoder(hf_causal_lm, tokenizer, layer=39)
    text.encode(captions, template="long")                   # (B, 7, D): one embedding per facet, one pass for all
    image = FlameImageEncoder(FlameVisionConfig())
    image(pixel_values)                                      # (B, D) unit vectors in the same space

Text embeddings are computed once and stored; training never runs the language model.
"""

from mm.encoders.flame.config import FlameVisionConfig, flame_config
from mm.encoders.flame.loss import multi_positive_nce_loss, multi_positive_sigmoid_loss
from mm.encoders.flame.model import FlameImageEncoder
from mm.encoders.flame.sentence import SentenceTextEncoder
from mm.encoders.flame.templates import OFFICIAL, WORLD, FacetTemplate
from mm.encoders.flame.text import FacetTextEncoder, TextTower
from mm.encoders.flame.tower import TextTowerConfig, load_text_tower

__all__ = [
    "OFFICIAL",
    "WORLD",
    "FacetTemplate",
    "FacetTextEncoder",
    "FlameImageEncoder",
    "FlameVisionConfig",
    "SentenceTextEncoder",
    "TextTower",
    "TextTowerConfig",
    "flame_config",
    "load_text_tower",
    "multi_positive_nce_loss",
    "multi_positive_sigmoid_loss",
]
