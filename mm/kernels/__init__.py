"""Fused attention, modulated norm and codeword search.

Every function takes `impl="auto"|"reference"|...`; `explain()` tells what ran and why.
"""

from mm.kernels.code_search import nearest_code
from mm.kernels.contrastive import local_attention, local_contrastive_similarity
from mm.kernels.dispatch import explain
from mm.kernels.masked_attention import attention
from mm.kernels.masks import Causal, Facets, Packed, VisualPrefix
from mm.kernels.monai_swin import replace_window_attention
from mm.kernels.norm import modulated_norm
from mm.kernels.scored_attention import Scores, attention_with_scores
from mm.kernels.window_attention import shifted_window_attention, window_attention_3d

__all__ = [
    "Causal",
    "Facets",
    "Packed",
    "Scores",
    "VisualPrefix",
    "attention",
    "attention_with_scores",
    "explain",
    "local_attention",
    "local_contrastive_similarity",
    "modulated_norm",
    "nearest_code",
    "replace_window_attention",
    "shifted_window_attention",
    "window_attention_3d",
]
