"""Fused attention, modulated norm and codeword search.

Every function takes `impl="auto"|"reference"|...`; `explain()` tells what ran and why.
"""

from mm.kernels.code_search import nearest_code
from mm.kernels.dispatch import explain
from mm.kernels.scored_attention import Scores, attention_with_scores

__all__ = ["Scores", "attention_with_scores", "explain", "nearest_code"]
