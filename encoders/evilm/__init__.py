"""E-ViLM: a compact video-language model trained by predicting semantic codes of hidden video."""

from mm.encoders.evilm.config import EViLMConfig, Swin3DConfig, evilm_config
from mm.encoders.evilm.model import EViLM, EViLMOutput, Fused, TextFeatures, VideoFeatures
from mm.encoders.evilm.objective import LossWeights, PretrainingBatch, pretraining_losses
from mm.encoders.evilm.presets import evilm_tiny
from mm.encoders.evilm.swin3d import Swin3D

__all__ = [
    "EViLM",
    "EViLMConfig",
    "EViLMOutput",
    "Fused",
    "LossWeights",
    "PretrainingBatch",
    "Swin3D",
    "Swin3DConfig",
    "TextFeatures",
    "VideoFeatures",
    "evilm_config",
    "evilm_tiny",
    "pretraining_losses",
]
