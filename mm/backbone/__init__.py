"""One adapter over every Hugging Face decoder language model."""

from mm.backbone.graft import graft, ungraft
from mm.backbone.language import LanguageBackbone
from mm.backbone.spec import FAMILIES, BackboneSpec

__all__ = ["FAMILIES", "BackboneSpec", "LanguageBackbone", "graft", "ungraft"]
