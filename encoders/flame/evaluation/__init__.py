"""What the embeddings are worth: zero-shot classification, retrieval both ways, linear probe.

All take plain tensors; `sources` and `features` get them from folders, WebDataset shards and tables of captions.
"""

from mm.encoders.flame.evaluation.features import ImageFeatures, image_features
from mm.encoders.flame.evaluation.linear_probe import ProbeConfig, linear_probe
from mm.encoders.flame.evaluation.phrases import PHRASES
from mm.encoders.flame.evaluation.retrieval import retrieval, text_scores
from mm.encoders.flame.evaluation.sources import open_source
from mm.encoders.flame.evaluation.zero_shot import class_vectors, zero_shot

__all__ = [
    "PHRASES",
    "ImageFeatures",
    "ProbeConfig",
    "class_vectors",
    "image_features",
    "linear_probe",
    "open_source",
    "retrieval",
    "text_scores",
    "zero_shot",
]
