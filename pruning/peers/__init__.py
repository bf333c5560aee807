"""The methods that FlowCut is compared with, each written from its paper's criterion."""

from mm.pruning.peers.controls import RandomPrune, UniformGrid
from mm.pruning.peers.fastv import FastV
from mm.pruning.peers.prumerge import PruMerge
from mm.pruning.peers.pyramiddrop import PyramidDrop
from mm.pruning.peers.sparsevlm import SparseVLM
from mm.pruning.peers.visionzip import VisionZip

__all__ = ["FastV", "PruMerge", "PyramidDrop", "RandomPrune", "SparseVLM", "UniformGrid", "VisionZip"]
