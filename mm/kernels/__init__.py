"""Fused attention, modulated norm and codeword search.

Every function takes `impl="auto"|"reference"|...`; `explain()` tells what ran and why.
"""

from mm.kernels.dispatch import explain

__all__ = ["explain"]
