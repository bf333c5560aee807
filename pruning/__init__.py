"""Fewer visual tokens for vision-language models: FlowCut and its peers."""

from mm.pruning.base import Pruned, Pruner
from mm.pruning.flowcut import FlowCut
from mm.pruning.peers import FastV, PruMerge, PyramidDrop, RandomPrune, SparseVLM, UniformGrid, VisionZip

__all__ = [
    "FastV",
    "FlowCut",
    "PruMerge",
    "Pruned",
    "Pruner",
    "PyramidDrop",
    "RandomPrune",
    "SparseVLM",
    "UniformGrid",
    "VisionZip",
]
