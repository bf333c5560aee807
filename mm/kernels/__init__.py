"""Fused attention, modulated norm and codeword search.

Every function takes `impl="auto"|"reference"|...`; `explain()` tells what ran and why.
"""

from mm.kernels.code_search import nearest_code
from mm.kernels.dispatch import explain

__all__ = ["explain", "nearest_code"]
