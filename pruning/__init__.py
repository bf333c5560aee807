"""Fewer visual tokens for vision-language models: FlowCut and its peers."""

from mm.pruning.base import Pruned, Pruner
from mm.pruning.flowcut import FlowCut

__all__ = ["FlowCut", "Pruned", "Pruner"]
