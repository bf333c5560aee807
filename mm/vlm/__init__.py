"""Vision-language models on a backbone: the concatenation host, its processor, and readers of published layouts."""

from mm.vlm.batch import check_counts, left_padded, pad_rows, positions_of
from mm.vlm.config import PromptConfig, VLMConfig
from mm.vlm.hf_native import NativeVisionLanguageModel
from mm.vlm.model import VisionLanguageModel
from mm.vlm.opening import open_model
from mm.vlm.processor import VLMProcessor
from mm.vlm.projector import build_projector

__all__ = [
    "NativeVisionLanguageModel",
    "PromptConfig",
    "VLMConfig",
    "VLMProcessor",
    "VisionLanguageModel",
    "build_projector",
    "check_counts",
    "left_padded",
    "open_model",
    "pad_rows",
    "positions_of",
]
